//! Lower layers never import higher ones, and a few things are used in one layer only.

use std::fs;
use std::path::{Path, PathBuf};

/// The layer of each module of `src/`, as `docs/architecture.md` draws them.
const LAYERS: &[(&str, u8)] = &[
    ("capacity", 0),
    ("socket_limits", 0),
    ("channel_kind", 0),
    ("channel_settings", 0),
    ("client_module", 0),
    ("config", 0),
    ("database", 0),
    ("error", 0),
    ("fork", 0),
    ("frame", 0),
    ("hosts", 0),
    ("lock_rank", 0),
    ("misspelling", 0),
    ("priority", 0),
    ("protocol", 0),
    ("random", 0),
    ("subprotocols", 0),
    ("sync", 0),
    ("command", 1),
    ("connection", 1),
    ("handshake", 1),
    ("history", 1),
    ("hub", 1),
    ("inbox", 1),
    ("interest", 1),
    ("json_limits", 1),
    ("log_throttle", 1),
    ("outbound", 1),
    ("receipt", 1),
    ("wheel", 1),
    ("broker", 2),
    ("events", 2),
    ("idempotency", 2),
    ("mailbox", 2),
    ("presence", 2),
    ("store", 2),
    ("listener", 2),
    ("unix_socket", 2),
    ("node", 3),
    ("shard", 4),
    ("server", 5),
    ("py", 6),
];

/// What only some modules may name, and which.
const RESERVED: &[(&str, &[&str])] = &[
    ("pyo3", &["py"]),
    ("tokio::net", &["shard"]),
    ("tokio::", &["shard", "server", "py"]),
    ("std::net", &["fork", "listener", "node", "shard", "server"]),
    ("MemoryBroker", &["broker", "server"]),
    ("MemoryStore", &["store", "server"]),
    ("SqliteStore", &["store", "server"]),
    ("rusqlite", &["store"]),
    (
        "Instant",
        &[
            "protocol", "sync", "inbox", "store", "shard", "server", "py",
        ],
    ),
    ("std::sync::Mutex", &["sync"]),
    ("parking_lot", &[]),
    ("SystemTime", &["protocol"]),
];

fn sources() -> Vec<(String, PathBuf, String)> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    walk(&root, &mut paths);
    paths
        .into_iter()
        .filter(|path| !path.ends_with("lib.rs"))
        .map(|path| {
            let first = path
                .strip_prefix(&root)
                .unwrap()
                .components()
                .next()
                .unwrap();
            let module = first
                .as_os_str()
                .to_str()
                .unwrap()
                .trim_end_matches(".rs")
                .to_owned();
            let text = fs::read_to_string(&path).unwrap();
            (module, path, text)
        })
        .collect()
}

/// The code of a file without its tests and comments.
fn code(text: &str) -> impl Iterator<Item = &str> {
    let end = text.find("#[cfg(test)]\nmod tests").unwrap_or(text.len());
    text[..end]
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
}

fn layer(module: &str) -> u8 {
    let found = LAYERS.iter().find(|(name, _)| *name == module);
    found
        .unwrap_or_else(|| {
            panic!(
                "module {module} has no layer: add it to the table here and in docs/architecture.md"
            )
        })
        .1
}

#[test]
fn lower_layers_never_import_higher_ones() {
    for (module, path, text) in sources() {
        for line in code(&text) {
            for imported in line.split("crate::").skip(1) {
                let name: String = imported
                    .chars()
                    .take_while(|c| c.is_alphanumeric() || *c == '_')
                    .collect();
                assert!(
                    layer(&name) <= layer(&module),
                    "{}: layer {} imports {name} of layer {}",
                    path.display(),
                    layer(&module),
                    layer(&name)
                );
            }
        }
    }
}

#[test]
fn what_is_reserved_to_a_layer_stays_there() {
    for (module, path, text) in sources() {
        for (name, allowed) in RESERVED {
            let uses = code(&text)
                .any(|line| line.contains(name) && !line.contains("tokio_tungstenite::"));
            assert!(
                !uses || allowed.contains(&module.as_str()),
                "{}: {name} is for {allowed:?} only",
                path.display()
            );
        }
    }
}

#[test]
fn shards_share_nothing_by_lock() {
    for (module, path, text) in sources() {
        if ["hub", "connection", "outbound", "wheel"].contains(&module.as_str())
            || path.ends_with("shard/socket.rs")
        {
            let locks = code(&text).any(|line| line.contains("Mutex") || line.contains("RwLock"));
            assert!(
                !locks,
                "{}: a shard owns its connections outright",
                path.display()
            );
        }
    }
}

#[test]
fn files_are_short_and_on_the_map() {
    let map =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/architecture.md"))
            .unwrap();
    for (_, path, text) in sources() {
        let lines = text.lines().count();
        assert!(lines <= 650, "{}: {lines} lines", path.display());
        let name = path
            .strip_prefix(Path::new(env!("CARGO_MANIFEST_DIR")).join("src"))
            .unwrap();
        let name = name.to_str().unwrap().replace('\\', "/");
        assert!(
            map.contains(&format!("`{name}`")),
            "docs/architecture.md does not say what `{name}` is for"
        );
    }
}
