//! The syntax of labels (`k8s.io/apimachinery/pkg/api/validate/content`).

/// Longest name of a key, and longest value.
const MAX: usize = 63;
/// Longest prefix of a key.
const MAX_PREFIX: usize = 253;

const KEY: &str = "the key of a label: an optional DNS subdomain and '/', then 1 to 63 letters, digits, '-', '_' and '.', with a \
                   letter or digit at both ends";
const VALUE: &str =
    "the value of a label: at most 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends";

/// Check the key of a label; the error says what is allowed.
pub fn key(key: &str) -> Result<(), &'static str> {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    let part = |part: &str| {
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        !part.is_empty() && !part.starts_with('-') && !part.ends_with('-') && part.bytes().all(inner)
    };
    let prefixed = prefix.is_none_or(|prefix| prefix.len() <= MAX_PREFIX && prefix.split('.').all(part));
    if prefixed && !name.is_empty() && is_word(name) { Ok(()) } else { Err(KEY) }
}

/// Check the value of a label, which may be empty; the error says what is allowed.
pub fn value(value: &str) -> Result<(), &'static str> {
    if value.is_empty() || is_word(value) { Ok(()) } else { Err(VALUE) }
}

fn is_word(text: &str) -> bool {
    let ends = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let bytes = text.as_bytes();
    text.len() <= MAX && ends(bytes.first()) && ends(bytes.last()) && text.bytes().all(inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_what_kubernetes_takes() {
        for good in ["app", "app.kubernetes.io/name", "a_b.C-1", "x/Y"] {
            assert_eq!(key(good), Ok(()), "{good}");
        }
        for bad in ["", "-a", "a-", "a b", "/a", "a/", "A.b/c", "a/b/c", "a:b", &"a".repeat(64)] {
            assert_eq!(key(bad), Err(KEY), "{bad}");
        }
        for good in ["", "v1.2", "Shop_1"] {
            assert_eq!(value(good), Ok(()), "{good}");
        }
        for bad in ["a b", "-", "a/b", "ä", &"a".repeat(64)] {
            assert_eq!(value(bad), Err(VALUE), "{bad}");
        }
    }
}
