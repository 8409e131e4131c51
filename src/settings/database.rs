//! The `database` setting: where messages are saved.

use std::path::PathBuf;

/// A database that exists or can be created, as far as its URL tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Database {
    /// Nothing is saved.
    #[default]
    Memory,
    Sqlite {
        /// The URL as the user wrote it.
        url: String,
        path: PathBuf,
    },
}

impl Database {
    /// Parses a URL in the form of `SQLAlchemy`: `sqlite:///relative.db`, `sqlite:////absolute.db`, or an empty text for
    /// `Memory`.
    ///
    /// Errors: the problem and the right form, as text.
    pub fn parse(url: &str) -> Result<Self, String> {
        if url.is_empty() {
            return Ok(Database::Memory);
        }
        Ok(Database::Sqlite {
            url: url.to_owned(),
            path: sqlite_path(url)?,
        })
    }

    /// Returns the URL that `parse` took.
    pub fn url(&self) -> &str {
        match self {
            Database::Memory => "",
            Database::Sqlite { url, .. } => url,
        }
    }
}

fn sqlite_path(url: &str) -> Result<PathBuf, String> {
    let shape = "a database is written sqlite:///tantor.db, or sqlite:////var/lib/tantor.db for an absolute path";
    let Some((scheme, rest)) = url.split_once("://") else {
        return Err(format!("it has no scheme; {shape}"));
    };
    if scheme != "sqlite" {
        return Err(format!(
            "{scheme:?} is no database that is known here; {shape}"
        ));
    }
    let Some(path) = rest.strip_prefix('/') else {
        return Err(format!("sqlite has no host; {shape}"));
    };
    if path.contains(['?', '#']) {
        return Err(format!(
            "a query is not understood; {shape} (%3F stands for ?, %23 for #)"
        ));
    }
    let path = decode(path).ok_or_else(|| format!("its % signs are no escapes; {shape}"))?;
    if path.is_empty() || path == ":memory:" || path.ends_with('/') {
        return Err(format!("it names no file; {shape}"));
    }
    if path.contains('\0') {
        return Err("a path cannot have a zero byte".to_owned());
    }
    Ok(PathBuf::from(path))
}

fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [byte, after @ ..] = rest {
        rest = after;
        if *byte != b'%' {
            bytes.push(*byte);
            continue;
        }
        let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
        if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_name_files() {
        for (url, path) in [
            ("sqlite:///tantor.db", "tantor.db"),
            ("sqlite:///data/tantor.db", "data/tantor.db"),
            ("sqlite:////var/lib/tantor.db", "/var/lib/tantor.db"),
            ("sqlite:///a%20b%3F.db", "a b?.db"),
        ] {
            assert_eq!(sqlite_path(url), Ok(PathBuf::from(path)), "{url}");
        }
    }

    #[test]
    fn what_is_none_is_told_what_would_be_right() {
        for url in [
            "tantor.db",
            "postgresql://host/db",
            "sqlite://tantor.db",
            "sqlite:///",
            "sqlite:///:memory:",
            "sqlite:///a/",
            "sqlite:///a.db?mode=ro",
            "sqlite:///a%2",
            "sqlite:///a%+1.db",
            "sqlite:///a%00.db",
        ] {
            let error = Database::parse(url).expect_err(url);
            assert!(
                error.contains("sqlite:///") || error.contains("zero byte"),
                "{error}"
            );
        }
    }
}
