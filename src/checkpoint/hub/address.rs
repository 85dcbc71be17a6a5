//! Web addresses: resolving relative ones, and comparing origins.

use ureq::http::Uri;

/// Scheme, host and port: these identify the server behind an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Origin {
    pub(super) scheme: String,
    host: String,
    port: u16,
}

impl Origin {
    /// Returns the origin of an http or https address; `None` for anything else.
    pub(super) fn of(address: &str) -> Option<Self> {
        let uri: Uri = address.parse().ok()?;
        let scheme = uri.scheme_str()?.to_ascii_lowercase();
        let usual = match scheme.as_str() {
            "http" => 80,
            "https" => 443,
            _ => return None,
        };
        let host = uri.host().filter(|host| !host.is_empty())?.to_ascii_lowercase();
        Some(Self { scheme, host, port: uri.port_u16().unwrap_or(usual) })
    }
}

/// Resolves `location` against `base`. It may be a whole address, a path on the same host, or a path relative to
/// `base`. Characters that an address may not contain are escaped.
pub(super) fn joined(base: &str, location: &str) -> Option<String> {
    let location = clean(location);
    let scheme = base.find("://")?;
    let host_end = base[scheme + 3..].find(['/', '?', '#']).map_or(base.len(), |len| scheme + 3 + len);
    let lower = location.to_ascii_lowercase();
    let path_end = base.find(['?', '#']).unwrap_or(base.len());
    let joined = if lower.starts_with("http://") || lower.starts_with("https://") {
        location
    } else if location.starts_with("//") {
        format!("{}:{location}", &base[..scheme])
    } else if location.starts_with('/') {
        format!("{}{location}", &base[..host_end])
    } else if location.starts_with('?') {
        format!("{}{location}", &base[..path_end])
    } else if location.is_empty() || location.split(['/', '?']).next().is_some_and(|part| part.contains(':')) {
        // It is empty, or an address of another scheme.
        return None;
    } else {
        let folder = base[host_end..path_end].rfind('/').map_or(host_end, |slash| host_end + slash);
        format!("{}/{location}", &base[..folder])
    };
    let whole = joined.split('#').next().unwrap_or_default().to_owned();
    Origin::of(&whole).map(|_| whole)
}

/// Returns `text` with every character escaped that an address may not contain. Existing escapes stay.
fn clean(text: &str) -> String {
    let mut out = String::new();
    for b in text.trim().bytes() {
        match b.is_ascii_graphic() && !b"\"<>\\^`{|}".contains(&b) {
            true => out.push(char::from(b)),
            false => out.push_str(&format!("%{b:02X}")),
        }
    }
    out
}

/// Returns `text` escaped for the path of an address, except for the characters in `kept`.
pub(super) fn quoted(text: &str, kept: &[u8]) -> String {
    let mut out = String::new();
    for b in text.bytes() {
        match b.is_ascii_alphanumeric() || b"-_.~".contains(&b) || kept.contains(&b) {
            true => out.push(char::from(b)),
            false => out.push_str(&format!("%{b:02X}")),
        }
    }
    out
}

/// Returns an address for messages: without the query, which may hold a signature that gives anybody access to a file.
pub(super) fn shown(address: &str) -> &str {
    address.split(['?', '#']).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_addresses_mean_what_browsers_make_of_them() {
        let base = "https://hub.example:8443/org/model/resolve/main/a.json?x=1";
        for (location, expected) in [
            ("https://cdn.example/x?sig=a b", Some("https://cdn.example/x?sig=a%20b")),
            ("//cdn.example/x", Some("https://cdn.example/x")),
            ("/api/x", Some("https://hub.example:8443/api/x")),
            ("b.json", Some("https://hub.example:8443/org/model/resolve/main/b.json")),
            ("?y=2", Some("https://hub.example:8443/org/model/resolve/main/a.json?y=2")),
            ("/x#part", Some("https://hub.example:8443/x")),
            ("", None),
            ("ftp://hub.example/x", None),
            ("file:/etc/passwd", None),
            ("http://", None),
        ] {
            assert_eq!(joined(base, location).as_deref(), expected, "{location}");
        }
        assert_eq!(joined("http://h", "x").as_deref(), Some("http://h/x"));
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let of = |text| Origin::of(text).unwrap();
        assert_eq!(of("https://Hub.example/x"), of("HTTPS://hub.example:443"));
        for other in ["http://hub.example:443", "https://hub.example:444", "https://hub.example.org"] {
            assert_ne!(of("https://hub.example"), of(other), "{other}");
        }
        assert_eq!(Origin::of("ftp://x"), None);
    }
}
