//! The symmetric signature of Standard Webhooks: HMAC-SHA256 over `id.timestamp.body`.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hmac::{Hmac, Mac};
use sha2::Sha256;

/// Marks a key that is written in base64.
const PREFIX: &str = "whsec_";

/// A signing key.
pub struct Key(Vec<u8>);

/// Why a text is no signing key.
#[derive(Debug, PartialEq, Eq)]
pub enum KeyError {
    Empty,
    NoBase64,
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "the secret `signing_key` is empty",
            Self::NoBase64 => "the secret `signing_key` begins with whsec_, but no base64 follows",
        })
    }
}

impl Key {
    /// Reads `whsec_` and base64, or any other text as the key's own bytes. White space around it (the line end of a
    /// file) is not part of it.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let text = text.trim();
        let bytes = match text.strip_prefix(PREFIX) {
            Some(encoded) => STANDARD.decode(encoded).map_err(|_| KeyError::NoBase64)?,
            None => text.as_bytes().to_vec(),
        };
        if bytes.is_empty() { Err(KeyError::Empty) } else { Ok(Self(bytes)) }
    }

    /// The value of the header `webhook-signature`.
    pub fn sign(&self, id: &str, timestamp: u64, body: &str) -> String {
        // HMAC takes keys of any length (RFC 2104, 2): there is no error to meet.
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        mac.update(format!("{id}.{timestamp}.").as_bytes());
        mac.update(body.as_bytes());
        format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_that_of_the_reference_implementations() {
        // The vector that the libraries of Standard Webhooks test with.
        let key = Key::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n").expect("a key");
        let signature = key.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, r#"{"test": 2432232314}"#);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn a_key_without_the_prefix_is_its_own_bytes() {
        let raw = Key::parse("secret").expect("a key");
        let encoded = Key::parse("whsec_c2VjcmV0").expect("a key");
        assert_eq!(raw.sign("1", 2, "3"), encoded.sign("1", 2, "3"));
    }

    #[test]
    fn what_is_no_key_is_refused() {
        assert_eq!(Key::parse("whsec_%").err(), Some(KeyError::NoBase64));
        assert_eq!(Key::parse(" \n").err(), Some(KeyError::Empty));
        assert_eq!(Key::parse("whsec_").err(), Some(KeyError::Empty));
    }
}
