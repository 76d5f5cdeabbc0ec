//! The first gate: may this URL's scheme, host and port be asked at all?

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// `http://` or `https://`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Without TLS.
    Http,
    /// With TLS.
    Https,
}

impl Scheme {
    /// 80 or 443.
    pub fn default_port(self) -> u16 {
        match self {
            Scheme::Http => 80,
            Scheme::Https => 443,
        }
    }
}

/// One granted host: scheme, exact name or literal address, and port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowedHost {
    scheme: Scheme,
    /// As [`normal_host`] writes it.
    host: String,
    port: u16,
}

/// Why a text grants no host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AllowedHostError {
    /// No scheme, or another one.
    #[error("`{0}` must start with http:// or https://")]
    Scheme(String),
    /// A pattern.
    #[error("`{0}` is a pattern; grants name the exact host, one entry for each")]
    Wildcard(String),
    /// More than scheme, host and port.
    #[error("`{0}` has more than a host and a port; write only https://host[:port]")]
    Extra(String),
    /// The host is no name and no address.
    #[error("`{0}` has no valid host name or address (international names in their xn-- form)")]
    Host(String),
    /// The port is no number from 1 to 65535.
    #[error("`{0}` has no valid port")]
    Port(String),
}

impl FromStr for AllowedHost {
    type Err = AllowedHostError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let shown = || text.chars().take(200).collect::<String>();
        let (scheme, rest) = match text.split_once("://") {
            Some((s, rest)) if s.eq_ignore_ascii_case("https") => (Scheme::Https, rest),
            Some((s, rest)) if s.eq_ignore_ascii_case("http") => (Scheme::Http, rest),
            _ => return Err(AllowedHostError::Scheme(shown())),
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        if authority.contains('*') {
            return Err(AllowedHostError::Wildcard(shown()));
        }
        if authority.contains(['/', '?', '#', '@', '\\']) {
            return Err(AllowedHostError::Extra(shown()));
        }
        let (host, port) = split_authority(authority).ok_or_else(|| AllowedHostError::Host(shown()))?;
        let port = match port {
            None => scheme.default_port(),
            Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => {
                digits.parse().ok().filter(|port| *port != 0).ok_or_else(|| AllowedHostError::Port(shown()))?
            }
            Some(_) => return Err(AllowedHostError::Port(shown())),
        };
        let host = normal_host(host).ok_or_else(|| AllowedHostError::Host(shown()))?;
        Ok(AllowedHost { scheme, host, port })
    }
}

impl AllowedHost {
    /// Whether a request to this place is granted. `host` is as [`normal_host`] writes it.
    pub fn allows(&self, scheme: Scheme, host: &str, port: u16) -> bool {
        self.scheme == scheme && self.port == port && self.host == host
    }
}

/// `host:port` or `[v6]:port`, the port optional.
fn split_authority(authority: &str) -> Option<(&str, Option<&str>)> {
    if authority.starts_with('[') {
        let end = authority.find(']')?;
        let (host, rest) = authority.split_at(end + 1);
        return match rest.strip_prefix(':') {
            Some(port) => Some((host, Some(port))),
            None if rest.is_empty() => Some((host, None)),
            None => None,
        };
    }
    match authority.split_once(':') {
        Some((host, port)) => Some((host, Some(port))),
        None => Some((authority, None)),
    }
}

/// The one spelling of a host: lower case, without a trailing dot; addresses as Rust writes them, IPv6 without
/// brackets. None for what is neither a DNS name (RFC 1123, underscores allowed) nor an address.
pub fn normal_host(host: &str) -> Option<String> {
    if let Some(inner) = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        return inner.parse::<Ipv6Addr>().ok().map(|ip| ip.to_string());
    }
    if let Ok(ip) = host.parse::<Ipv4Addr>() {
        return Some(ip.to_string());
    }
    let name = host.strip_suffix('.').unwrap_or(host);
    let valid_label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    (name.len() <= 253 && name.split('.').all(valid_label)).then(|| name.to_ascii_lowercase())
}

impl fmt::Display for AllowedHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.scheme {
            Scheme::Http => "http",
            Scheme::Https => "https",
        };
        let (open, close) = if self.host.contains(':') { ("[", "]") } else { ("", "") };
        write!(f, "{scheme}://{open}{}{close}", self.host)?;
        if self.port != self.scheme.default_port() {
            write!(f, ":{}", self.port)?;
        }
        Ok(())
    }
}

impl Serialize for AllowedHost {
    fn serialize<S: Serializer>(&self, output: S) -> Result<S::Ok, S::Error> {
        output.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for AllowedHost {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        String::deserialize(input)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(grant: &str, scheme: Scheme, host: &str, port: u16) -> bool {
        let grant: AllowedHost = grant.parse().unwrap();
        normal_host(host).is_some_and(|host| grant.allows(scheme, &host, port))
    }

    #[test]
    fn a_grant_reaches_its_exact_host_and_nothing_else() {
        let grant = "https://hooks.example.com";
        assert!(allows(grant, Scheme::Https, "hooks.example.com", 443));
        assert!(allows(grant, Scheme::Https, "HOOKS.Example.Com.", 443));
        assert!(!allows(grant, Scheme::Http, "hooks.example.com", 443));
        assert!(!allows(grant, Scheme::Https, "hooks.example.com", 8443));
        assert!(!allows(grant, Scheme::Https, "evil.hooks.example.com", 443));
        assert!(!allows(grant, Scheme::Https, "hooks.example.com.evil.org", 443));
        assert!(!allows(grant, Scheme::Https, "example.com", 443));
    }

    #[test]
    fn literal_addresses_are_compared_as_addresses() {
        assert!(allows("http://[0:0:0:0:0:0:0:1]:8080", Scheme::Http, "[::1]", 8080));
        assert!(allows("http://127.0.0.1:80", Scheme::Http, "127.0.0.1", 80));
        assert!(!allows("http://127.0.0.1", Scheme::Http, "127.1", 80));
        assert!(!allows("http://127.0.0.1", Scheme::Http, "[::ffff:127.0.0.1]", 80));
    }

    #[test]
    fn what_is_no_single_host_is_refused_with_its_reason() {
        for (text, want) in [
            ("hooks.example.com", "must start with"),
            ("ftp://example.com", "must start with"),
            ("https://*.example.com", "pattern"),
            ("https://example.com/path", "more than a host"),
            ("https://user@example.com", "more than a host"),
            ("https://", "no valid host"),
            ("https://exa mple.com", "no valid host"),
            ("https://bücher.example", "no valid host"),
            ("https://[::1", "no valid host"),
            ("https://example.com:0", "no valid port"),
            ("https://example.com:99999", "no valid port"),
            ("https://example.com:+80", "no valid port"),
        ] {
            let error = text.parse::<AllowedHost>().unwrap_err().to_string();
            assert!(error.contains(want), "{text}: {error}");
        }
    }

    #[test]
    fn a_grant_is_shown_as_it_can_be_written() {
        for text in ["https://example.com", "http://example.com:8080", "https://[2001:db8::1]:8443"] {
            assert_eq!(text.parse::<AllowedHost>().unwrap().to_string(), text);
        }
    }
}
