//! The JavaScript client and its types, as they are served: for pages of any origin, and asked for anew each time.

use std::sync::LazyLock;

/// A file that is served.
pub struct ClientFile {
    path: &'static str,
    pub content_type: &'static str,
    pub body: &'static [u8],
    /// With its quotes.
    pub etag: String,
}

static FILES: LazyLock<[ClientFile; 2]> = LazyLock::new(|| {
    [
        ClientFile::new(
            "/tantor.js",
            "text/javascript; charset=utf-8",
            include_bytes!("../../python/tantor/js/tantor.js"),
        ),
        ClientFile::new(
            "/tantor.d.ts",
            "application/typescript; charset=utf-8",
            include_bytes!("../../python/tantor/js/tantor.d.ts"),
        ),
    ]
});

/// The file at a path, if there is one.
pub fn client_file(path: &str) -> Option<&'static ClientFile> {
    FILES.iter().find(|file| file.path == path)
}

impl ClientFile {
    fn new(path: &'static str, content_type: &'static str, body: &'static [u8]) -> Self {
        // FNV-1a: it tells versions apart, nothing more
        let hash = body.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
        Self {
            path,
            content_type,
            body,
            etag: format!("\"{hash:016x}\""),
        }
    }

    /// Whether `If-None-Match` names this version (RFC 9110 section 13.1.2).
    pub fn is_known(&self, if_none_match: &str) -> bool {
        if_none_match
            .split(',')
            .map(str::trim)
            .any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == self.etag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_file_is_known_by_its_own_tag() {
        let (module, types) = (
            client_file("/tantor.js").expect("served"),
            client_file("/tantor.d.ts").expect("served"),
        );
        assert!(client_file("/tantor.ts").is_none());
        assert_ne!(module.etag, types.etag);
        for known in [
            module.etag.clone(),
            format!("W/{}", module.etag),
            format!("{}, {}", types.etag, module.etag),
            "*".to_owned(),
        ] {
            assert!(module.is_known(&known), "{known}");
        }
        for unknown in ["", &types.etag, module.etag.trim_matches('"')] {
            assert!(!module.is_known(unknown), "{unknown}");
        }
    }
}
