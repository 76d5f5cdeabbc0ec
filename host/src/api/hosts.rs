//! Which names a request may use for this service: what keeps a web page from reaching it under a name of its own (DNS
//! rebinding).

use std::collections::HashSet;
use std::net::IpAddr;

use crate::config::ServerSection;

/// The names of this service, in lower case. IP literals and `localhost` always are.
#[derive(Debug)]
pub(super) struct Hosts {
    names: HashSet<String>,
    /// Host and port of the public URL, as an `Origin` spells them.
    public_authority: Option<String>,
}

impl Hosts {
    /// The machine's names, also with `.local`, and those of the configuration.
    pub(super) fn new(server: &ServerSection) -> Self {
        let machine = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
        Self::with_machine(server, machine.as_deref())
    }

    fn with_machine(server: &ServerSection, machine: Option<&str>) -> Self {
        let mut names = HashSet::from(["localhost".to_owned()]);
        if let Some(machine) = machine {
            let short = machine.split('.').next().unwrap_or(machine);
            names.extend([machine, short].map(normal));
            names.insert(normal(&format!("{short}.local")));
        }
        names.extend(server.allowed_hosts.iter().map(|host| normal(without_port(host))));
        let public_authority = server.public_url.as_deref().map(|url| authority_of(url).to_ascii_lowercase());
        names.extend(public_authority.as_deref().map(|authority| normal(without_port(authority))));
        names.remove("");
        Self { names, public_authority }
    }

    /// Whether a request may carry this `Host`, with any port: an SSH tunnel changes it.
    pub(super) fn allows(&self, host: &str) -> bool {
        let name = without_port(host);
        let literal = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
        literal.parse::<IpAddr>().is_ok() || self.names.contains(&normal(name))
    }

    /// Whether a page of this `Origin` (RFC 6454) is served by this service itself, which the request called `host`.
    pub(super) fn is_same_origin(&self, origin: &str, host: &str) -> bool {
        let authority = authority_of(origin);
        // `null` and anything without a scheme is nobody's.
        origin.contains("://")
            && (authority.eq_ignore_ascii_case(host)
                || self.public_authority.as_deref().is_some_and(|public| public.eq_ignore_ascii_case(authority)))
    }
}

/// A name as it is compared: lower case, without the root's dot.
fn normal(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

fn without_port(host: &str) -> &str {
    match host.rfind(':') {
        // The colons of an IPv6 literal are inside brackets.
        Some(colon) if !host[colon..].contains(']') => &host[..colon],
        _ => host,
    }
}

fn authority_of(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split(['/', '?', '#']).next().unwrap_or(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts() -> Hosts {
        let server = ServerSection {
            allowed_hosts: vec!["lab.example".into()],
            public_url: Some("https://taxiway.example:8443/base".into()),
            ..ServerSection::default()
        };
        Hosts::with_machine(&server, Some("Box.lan"))
    }

    #[test]
    fn our_own_names_are_allowed_with_any_port() {
        let hosts = hosts();
        for host in [
            "localhost",
            "LOCALHOST:8294",
            "localhost.",
            "127.0.0.1:1",
            "10.1.2.3",
            "[::1]:8294",
            "[::1]",
            "box",
            "box.local:80",
            "box.lan",
            "lab.example:443",
            "taxiway.example",
        ] {
            assert!(hosts.allows(host), "{host}");
        }
    }

    #[test]
    fn names_of_others_are_not() {
        let hosts = hosts();
        for host in
            ["", "evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "box.evil", "local", "[::1].evil"]
        {
            assert!(!hosts.allows(host), "{host}");
        }
    }

    #[test]
    fn an_origin_is_ours_when_host_and_port_are() {
        let hosts = hosts();
        assert!(hosts.is_same_origin("http://localhost:8294", "localhost:8294"));
        assert!(hosts.is_same_origin("https://taxiway.example:8443", "127.0.0.1:8294"));
        for origin in ["null", "http://localhost:3000", "http://evil.example", "localhost:8294", ""] {
            assert!(!hosts.is_same_origin(origin, "localhost:8294"), "{origin}");
        }
    }
}
