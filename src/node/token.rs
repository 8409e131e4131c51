//! Resume tokens as text.

use crate::base::names::check_client_id;
use crate::core::resume_secrets::Secret;
use std::sync::Arc;

/// URL-safe: the secret and the client's id in hexadecimal.
pub fn token_text(client_id: &str, secret: &Secret) -> String {
    let mut token = String::with_capacity(2 * (Secret::SIZE + client_id.len()));
    // once a connect: formatting each byte would show in its cost
    for byte in secret.bytes().iter().chain(client_id.as_bytes()) {
        for digit in [byte >> 4, byte & 15] {
            token.push(char::from(b"0123456789abcdef"[usize::from(digit)]));
        }
    }
    token
}

/// The id and the secret in a token; `None` for text that is no token.
pub fn read_token(token: &str) -> Option<(Arc<str>, Secret)> {
    let is_hex = token.bytes().all(|digit| digit.is_ascii_hexdigit());
    if !is_hex || !token.len().is_multiple_of(2) {
        return None;
    }
    let bytes = (0..token.len() / 2)
        .map(|at| u8::from_str_radix(token.get(2 * at..2 * at + 2)?, 16).ok())
        .collect::<Option<Vec<u8>>>()?;
    let (secret, id) = bytes.split_at_checked(Secret::SIZE)?;
    let id = str::from_utf8(id).ok()?;
    check_client_id(id).ok()?;
    Some((id.into(), Secret::new(secret.try_into().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::resume_secrets::Secrets;

    #[test]
    fn a_token_is_read_as_it_was_written() {
        let latest = Secrets::generate().latest();
        let token = token_text("client_é", &latest);
        assert!(token.bytes().all(|byte| byte.is_ascii_alphanumeric()));
        let (id, secret) = read_token(&token).expect("valid");
        assert_eq!((&*id, secret), ("client_é", latest));
        for bad in [
            "",
            &format!("+{}", &token[1..]),
            "0",
            "zz",
            "é",
            &token[..30],
            &token[..31],
            &format!("{token}ff"),
        ] {
            assert!(read_token(bad).is_none(), "{bad}");
        }
    }
}
