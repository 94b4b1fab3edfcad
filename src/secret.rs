//! A string that must not be seen: redacted when printed, wiped when dropped.

use std::fmt;

use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// An access token, refresh token, client secret or key as text.
///
/// `Debug` prints `[redacted]`, there is no `Display` and no `Serialize`, and the
/// bytes are overwritten when the last owner drops them. [`Secret::expose`] is the
/// only way to the text, so `grep expose` finds every place where it leaves.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<Box<str>>);

impl Secret {
    /// Takes ownership of the text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into().into_boxed_str()))
    }

    /// The secret that a file or a pipe holds in one line; white space around it is not
    /// part of it.
    ///
    /// # Errors
    /// [`NotOneLine`] when there is nothing, or more than one word.
    pub fn from_line(text: &str) -> Result<Self, NotOneLine> {
        let line = text.trim();
        if line.is_empty() || line.chars().any(char::is_whitespace) {
            return Err(NotOneLine);
        }
        Ok(Self::new(line))
    }

    /// The text itself, to be sent or encrypted, never to be logged.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The first 16 bytes of the SHA-256 of the text: enough to recognise a token
    /// again, useless for spending it.
    pub fn fingerprint(&self) -> Fingerprint {
        let digest = Sha256::digest(self.0.as_bytes());
        let mut short = [0; 16];
        short.copy_from_slice(&digest[..16]);
        Fingerprint(short)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl<'de> serde::Deserialize<'de> for Secret {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::new)
    }
}

impl schemars::JsonSchema for Secret {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Secret".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "writeOnly": true })
    }
}

/// The text is not one secret in one line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not one token in one line")]
pub struct NotOneLine;

/// Recognises a token without holding it. See [`Secret::fingerprint`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 16]);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_nothing() {
        assert_eq!(format!("{:?}", Secret::new("hunter2")), "[redacted]");
    }

    #[test]
    fn a_line_is_one_word() {
        assert_eq!(Secret::from_line(" abc\n"), Ok(Secret::new("abc")));
        for text in ["", " \n", "a b", "a\nb\n"] {
            assert_eq!(Secret::from_line(text), Err(NotOneLine), "{text:?}");
        }
    }

    #[test]
    fn fingerprints_tell_tokens_apart() {
        let one = Secret::new("one");
        assert_eq!(one.fingerprint(), Secret::new("one").fingerprint());
        assert_ne!(one.fingerprint(), Secret::new("two").fingerprint());
    }
}
