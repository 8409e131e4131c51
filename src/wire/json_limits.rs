//! Bounds on a client's JSON, so that the JSON parsers of subscribers can read what the server passes on.

use crate::base::error::{ErrorCode, Refusal};

/// The bounds of one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JsonLimits {
    /// Nesting of arrays and objects.
    pub max_depth: usize,
    /// Digits of one number.
    pub max_digits: usize,
}

/// An integer with at most this many digits is below the largest double.
const DIGITS_BELOW_INFINITY: usize = 308;

/// Checks nesting and numbers in one pass over the text, without recursion. The syntax is not checked.
///
/// Errors: `TooDeep`, or `Unreadable` for a number that a subscriber's JSON parser refuses or reads as infinity.
pub fn check_limits(text: &str, limits: JsonLimits) -> Result<(), Refusal> {
    let bytes = text.as_bytes();
    // an integer of so many digits is within both bounds
    let short = limits.max_digits.min(DIGITS_BELOW_INFINITY);
    let (mut at, mut depth) = (0, 0_usize);
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'"' => at = string_end(bytes, at + 1),
            b'0'..=b'9' => {
                let end = digits_end(bytes, at);
                let is_longer = matches!(bytes.get(end), Some(b'.' | b'e' | b'E'));
                at = if !is_longer && end - at <= short {
                    end
                } else {
                    let end = number_end(bytes, end);
                    check_number(&text[at..end], limits.max_digits)?;
                    end
                };
            }
            b'[' | b'{' => {
                depth += 1;
                if depth > limits.max_depth {
                    return Err(too_deep(limits.max_depth));
                }
                at += 1;
            }
            b']' | b'}' => {
                depth = depth.saturating_sub(1);
                at += 1;
            }
            _ => at += 1,
        }
    }
    Ok(())
}

/// The index behind a string's closing quote; beyond the text's end when the string has none.
fn string_end(bytes: &[u8], start: usize) -> usize {
    let mut at = start;
    while let Some(rest) = bytes.get(at..) {
        match memchr::memchr2(b'"', b'\\', rest) {
            Some(found) if rest[found] == b'"' => return at + found + 1,
            // the escaped byte is skipped too
            Some(found) => at += found + 2,
            None => break,
        }
    }
    bytes.len()
}

fn digits_end(bytes: &[u8], start: usize) -> usize {
    end_of(bytes, start, u8::is_ascii_digit)
}

fn number_end(bytes: &[u8], start: usize) -> usize {
    end_of(bytes, start, |byte| {
        matches!(byte, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-')
    })
}

/// The index of the first byte from `start` on that is not `inside`.
fn end_of(bytes: &[u8], start: usize, inside: impl Fn(&u8) -> bool) -> usize {
    bytes[start..]
        .iter()
        .position(|byte| !inside(byte))
        .map_or(bytes.len(), |length| start + length)
}

/// Checks a number without its sign.
fn check_number(number: &str, max_digits: usize) -> Result<(), Refusal> {
    let has_exponent = number.bytes().any(|byte| matches!(byte, b'e' | b'E'));
    if !has_exponent && number.len() <= max_digits.min(DIGITS_BELOW_INFINITY) {
        return Ok(());
    }
    let digits = number.bytes().filter(u8::is_ascii_digit).count();
    if digits > max_digits {
        return Err(Refusal::new(
            ErrorCode::Unreadable,
            format!("a number has {digits} digits; it takes at most {max_digits} (max_digits)"),
        ));
    }
    if number.parse::<f64>().is_ok_and(f64::is_infinite) {
        return Err(Refusal::new(
            ErrorCode::Unreadable,
            format!("a number is larger than {:e}, the largest double", f64::MAX),
        ));
    }
    Ok(())
}

fn too_deep(max_depth: usize) -> Refusal {
    Refusal::new(
        ErrorCode::TooDeep,
        format!("a message may nest {max_depth} deep, not more"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<(), ErrorCode> {
        let limits = JsonLimits {
            max_depth: 8,
            max_digits: 20,
        };
        check_limits(text, limits).map_err(|refusal| refusal.code)
    }

    #[test]
    fn numbers_that_parsers_cannot_hold_are_refused() {
        for text in [
            "[123456789012345678901]",
            r#"{"a":-123456789012345678901}"#,
            "[0.12345678901234567890]",
            "[1e999]",
            "[-1E+309]",
            "[1.8e308]",
            "[1e00000000000000000000000001]",
            // at the end of a text that is cut
            "[1e999",
            r#"["\\",1e999]"#,
            r#"["\"",1e999]"#,
        ] {
            assert_eq!(check(text), Err(ErrorCode::Unreadable), "{text}");
        }
        for text in [
            "[12345678901234567890]",
            "[-12345678901234567890]",
            "[1.797e308,1e-999,0.1234567890123456789]",
            r#"["123456789012345678901","1e999"]"#,
            r#"["\"1e999"]"#,
            r#"{"123456789012345678901":1}"#,
            r#"["1e999"#,
            "[\"1e999\\",
            "",
        ] {
            assert_eq!(check(text), Ok(()), "{text}");
        }
    }

    #[test]
    fn an_integer_beyond_a_double_is_refused_whatever_its_digits() {
        let limits = JsonLimits {
            max_depth: 8,
            max_digits: 640,
        };
        let check = |text: &str| check_limits(text, limits).map_err(|refusal| refusal.code);
        assert_eq!(check(&"9".repeat(308)), Ok(()));
        assert_eq!(check(&"9".repeat(309)), Err(ErrorCode::Unreadable));
        assert_eq!(check(&format!("0.{}", "9".repeat(630))), Ok(()));
    }

    #[test]
    fn brackets_in_strings_do_not_nest() {
        assert_eq!(check("[[[[[[[[]]]]]]]]"), Ok(()));
        assert_eq!(check("[[[[[[[[["), Err(ErrorCode::TooDeep));
        assert_eq!(check(r#"{"a":[[[[[[["]]]]]]]\"[[[[["]]]]]]]}"#), Ok(()));
        assert_eq!(check(r#"{"\\":[[[[[[[[]]]]]]]]}"#), Err(ErrorCode::TooDeep));
    }
}
