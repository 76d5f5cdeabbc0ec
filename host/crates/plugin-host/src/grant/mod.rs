//! What a manifest grants. Nothing is granted by default.
//!
//! One capability a file: [`host`] is the first gate of the network (the URL), [`address`] the second (where its name
//! really points), [`variable`] the environment that a rewriter may set.

pub mod address;
pub mod host;
pub mod variable;

use serde::Serialize;
use std::path::PathBuf;

/// Everything that one plugin is granted, as `GET /api/v1/plugins` shows it. Secrets are named, never shown.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Grants {
    /// `https://host[:port]`, each the exact host.
    pub http: Vec<host::AllowedHost>,
    /// Networks that count as public for this plugin.
    pub allow_private: Vec<address::Network>,
    /// Directories that it may read.
    pub read: Vec<PathBuf>,
    /// Environment variables that it may set as a rewriter.
    pub env: Vec<variable::AllowedVariable>,
    /// Names of the secrets that it may ask for.
    pub secrets: Vec<String>,
}
