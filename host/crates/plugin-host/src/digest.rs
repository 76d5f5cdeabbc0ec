//! SHA-256 of components.

use sha2::{Digest, Sha256};

/// The digest in lower-case hexadecimal, as `sha256sum` prints it.
pub fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}
