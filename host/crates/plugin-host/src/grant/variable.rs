//! Which environment variables a rewriter may set.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::str::FromStr;

/// One entry of `env = […]`: a variable's name, or the start of names with a `*` behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AllowedVariable {
    /// Exactly this one.
    Name(String),
    /// Every variable that starts so, save those that must be named in full.
    Prefix(String),
}

/// Why a text grants no variable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AllowedVariableError {
    /// `LD_*` decides which code a program loads, `TAXIWAY_*` is the service's own word.
    #[error("`{0}` is never granted: LD_* and TAXIWAY_* stay out of reach")]
    Never(String),
    /// A pattern reaches none of those that it is written for.
    #[error(
        "`{0}` grants nothing, since PYTHON* and CUDA_* decide what runs and on which GPUs; name each variable in full"
    )]
    OnlyInFull(String),
    /// Not a name.
    #[error("`{0}` is no variable; write NAME or PREFIX_* (a star only at the end)")]
    Malformed(String),
}

/// Whether a plugin can never set this one.
fn never(name: &str) -> bool {
    name.starts_with("LD_") || name.starts_with("TAXIWAY_")
}

/// Whether a pattern does not reach this one: it decides what runs, or which GPUs.
fn only_in_full(name: &str) -> bool {
    name == "PATH" || name.starts_with("PYTHON") || name.starts_with("CUDA_")
}

/// `[A-Za-z_][A-Za-z0-9_]*`, at most 256 bytes.
pub fn is_variable_name(name: &str) -> bool {
    name.len() <= 256
        && name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

impl AllowedVariable {
    /// Whether this entry grants the variable.
    pub fn allows(&self, name: &str) -> bool {
        !never(name)
            && match self {
                AllowedVariable::Name(granted) => granted == name,
                AllowedVariable::Prefix(prefix) => name.starts_with(prefix.as_str()) && !only_in_full(name),
            }
    }
}

impl FromStr for AllowedVariable {
    type Err = AllowedVariableError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let shown = || text.chars().take(100).collect::<String>();
        if never(text) {
            return Err(AllowedVariableError::Never(shown()));
        }
        match text.strip_suffix('*') {
            Some(prefix) if only_in_full(prefix) && prefix != "PATH" => Err(AllowedVariableError::OnlyInFull(shown())),
            Some("") => Ok(AllowedVariable::Prefix(String::new())),
            Some(prefix) if is_variable_name(prefix) => Ok(AllowedVariable::Prefix(prefix.to_owned())),
            None if is_variable_name(text) => Ok(AllowedVariable::Name(text.to_owned())),
            _ => Err(AllowedVariableError::Malformed(shown())),
        }
    }
}

impl Serialize for AllowedVariable {
    fn serialize<S: Serializer>(&self, output: S) -> Result<S::Ok, S::Error> {
        match self {
            AllowedVariable::Name(name) => output.serialize_str(name),
            AllowedVariable::Prefix(prefix) => output.collect_str(&format_args!("{prefix}*")),
        }
    }
}

impl<'de> Deserialize<'de> for AllowedVariable {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        String::deserialize(input)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(grant: &str, name: &str) -> bool {
        grant.parse::<AllowedVariable>().unwrap().allows(name)
    }

    #[test]
    fn patterns_do_not_reach_what_decides_over_code_and_gpus() {
        assert!(allows("NCCL_*", "NCCL_DEBUG"));
        assert!(!allows("NCCL_*", "NCCLDEBUG"));
        assert!(allows("CUDA_LAUNCH_BLOCKING", "CUDA_LAUNCH_BLOCKING"));
        assert!(!allows("CUDA*", "CUDA_LAUNCH_BLOCKING") && allows("CUDA*", "CUDAHOSTCXX"));
        assert!(!allows("*", "PATH"));
        assert!(allows("PATH", "PATH"));
        assert!(!allows("P*", "PYTHONPATH"));
        assert!(!allows("*", "LD_PRELOAD"));
        assert!(!allows("L*", "LD_PRELOAD"));
        assert!(!allows("*", "TAXIWAY_JOB_ID"));
    }

    #[test]
    fn what_grants_nothing_is_refused_in_the_manifest() {
        for text in ["LD_PRELOAD", "LD_*", "TAXIWAY_*"] {
            assert!(matches!(text.parse::<AllowedVariable>(), Err(AllowedVariableError::Never(_))), "{text}");
        }
        for text in ["CUDA_*", "CUDA_LAUNCH*", "PYTHON*", "PYTHONPATH*"] {
            assert!(matches!(text.parse::<AllowedVariable>(), Err(AllowedVariableError::OnlyInFull(_))), "{text}");
        }
        assert!(allows("PATH*", "PATHS") && !allows("PATH*", "PATH"));
        for text in ["", "A*B", "1A", "A B", "**"] {
            assert!(matches!(text.parse::<AllowedVariable>(), Err(AllowedVariableError::Malformed(_))), "{text}");
        }
    }
}
