//! The hosts to listen on: addresses and names of TCP, and paths of Unix sockets.

use std::path::{Path, PathBuf};

/// The prefix of the path of a Unix socket.
const UNIX: &str = "unix:";

/// Every host of the setting `host`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hosts {
    text: String,
    list: Vec<Host>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// An address or a name.
    Tcp(String),
    /// An absolute path.
    Unix(PathBuf),
}

impl Default for Hosts {
    fn default() -> Self {
        let text = "0.0.0.0".to_owned();
        Self {
            list: vec![Host::Tcp(text.clone())],
            text,
        }
    }
}

impl Hosts {
    pub const TAKES: &str = "addresses, names, or unix: and the absolute path of a Unix socket, with commas between them";

    /// Parses a list with commas between its hosts.
    ///
    /// Errors: the first wrong host and its problem, as text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let list = text.split(',').map(|host| parse_host(host.trim()));
        Ok(Self {
            list: list.collect::<Result<_, _>>()?,
            text: text.to_owned(),
        })
    }

    /// The text that was parsed.
    pub fn text(&self) -> &str {
        &self.text
    }

    pub fn list(&self) -> &[Host] {
        &self.list
    }

    /// True if at least one host needs a TCP port.
    pub fn has_tcp(&self) -> bool {
        self.list.iter().any(|host| matches!(host, Host::Tcp(_)))
    }
}

fn parse_host(host: &str) -> Result<Host, String> {
    match host.strip_prefix(UNIX) {
        Some(path) => check_path(path).map_err(|problem| format!("{host:?} {problem}")),
        None if host.is_empty() => Err("one of them is empty".to_owned()),
        None => Ok(Host::Tcp(host.to_owned())),
    }
}

/// Formats a Unix socket as the setting writes it.
pub fn show_unix(path: &Path) -> String {
    format!("{UNIX}{}", path.display())
}

#[cfg(unix)]
fn check_path(path: &str) -> Result<Host, String> {
    if path.starts_with('@') || path.contains('\0') {
        return Err(
            "is the abstract name of a socket; only sockets with a file are supported".to_owned(),
        );
    }
    if !path.starts_with('/') {
        return Err("has no absolute path".to_owned());
    }
    if path.ends_with('/') {
        return Err("names a directory".to_owned());
    }
    if path.len() > MAX_PATH {
        return Err(format!(
            "has a path of {} bytes; the system takes at most {MAX_PATH} for a Unix socket",
            path.len()
        ));
    }
    Ok(Host::Unix(path.into()))
}

/// The longest path. The path and its NUL must fit into the address structure of the system.
#[cfg(unix)]
const MAX_PATH: usize =
    size_of::<libc::sockaddr_un>() - std::mem::offset_of!(libc::sockaddr_un, sun_path) - 1;

#[cfg(not(unix))]
fn check_path(_: &str) -> Result<Host, String> {
    Err("is a Unix socket, which this system does not have".to_owned())
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn hosts_of_both_kinds_may_be_listed() {
        let hosts = Hosts::parse("::1, unix:/run/app/tantor.sock,localhost").unwrap();
        let unix = Host::Unix("/run/app/tantor.sock".into());
        let tcp = |name: &str| Host::Tcp(name.to_owned());
        assert_eq!(hosts.list(), [tcp("::1"), unix, tcp("localhost")]);
        assert!(hosts.has_tcp());
        assert!(!Hosts::parse("unix:/a,unix:/b").unwrap().has_tcp());
    }

    #[test]
    fn what_no_socket_can_have_is_refused() {
        let longest = format!("unix:/{}", "x".repeat(MAX_PATH - 1));
        assert!(Hosts::parse(&longest).is_ok());
        for (host, wanted) in [
            (format!("{longest}x"), "at most"),
            ("unix:run/app.sock".to_owned(), "no absolute path"),
            ("unix:".to_owned(), "no absolute path"),
            ("unix:/run/".to_owned(), "names a directory"),
            ("unix:@name".to_owned(), "abstract"),
            ("unix:/a\0b".to_owned(), "abstract"),
            (String::new(), "empty"),
            ("127.0.0.1,".to_owned(), "empty"),
        ] {
            let problem = Hosts::parse(&host).unwrap_err();
            assert!(problem.contains(wanted), "{problem}");
        }
    }
}
