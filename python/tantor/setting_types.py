"""The settings as types, for `Tantor(**settings)`; `src/settings/config.rs` has the table of settings itself."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

Priority = Literal["low", "normal", "high", "emergency"]


class Settings(TypedDict, total=False):
    """Every setting but `port` and `host`. None means "not given here"."""

    unix_socket_mode: int | str | None
    default_channel: str | None
    heartbeat_interval: float | None
    heartbeat_timeout: float | None
    message_ttl: float | None
    emergency_ttl: float | None
    max_connections: int | None
    max_message_size: int | None
    max_unfinished_bytes: int | None
    message_timeout: float | None
    min_message_rate: int | None
    send_buffer_bytes: int | None
    receive_buffer_bytes: int | None
    max_depth: int | None
    max_digits: int | None
    max_header_size: int | None
    http_prefix: str | None
    subprotocols: str | Sequence[str] | None
    max_handshakes: int | None
    handshake_timeout: float | None
    max_channels_per_client: int | None
    max_pending_bytes: int | None
    max_queued_bytes: int | None
    publisher_hold: float | None
    slow_consumer: Literal["disconnect", "drop_oldest", "latest"] | None
    history_size: int | None
    history_bytes: int | None
    durable_bytes: int | None
    channel_settings: str | Mapping[str, Mapping[str, Any]] | None
    resume_ttl: float | None
    leave_delay: float | None
    max_away_clients: int | None
    away_bytes: int | None
    mailbox_size: int | None
    mailbox_bytes: int | None
    mailboxes_bytes: int | None
    ack_timeout: float | None
    idempotency_ttl: float | None
    max_idempotency_keys: int | None
    max_client_keys: int | None
    database: str | None
    database_bytes: int | None
    database_queue_bytes: int | None
    durable: bool | None
    app_context: bool | None
    inbox_bytes: int | None
    app_id: str | None
    runtime_dir: str | None
    max_processes: int | None
    event_queue_bytes: int | None
    notice_limit: int | None
    empty_channel_ttl: float | None
    max_empty_channels: int | None
    drain_timeout: float | None
    handle_sigterm: bool | None
    reconnect_window: float | None
    shards: int | None
