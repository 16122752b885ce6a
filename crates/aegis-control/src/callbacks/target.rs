//! Where a callback may go: what its URL must look like, and which addresses a name may have.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use axum::http::Uri;

/// The ports of https and http.
const HTTPS_PORT: u16 = 443;
const HTTP_PORT: u16 = 80;

/// A URL that a callback can be sent to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) uses_tls: bool,
    /// A name or an address, without brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
    /// The header `Host`.
    pub(crate) authority: String,
    /// Path and query.
    pub(crate) path: String,
}

impl Target {
    /// Reads a URL: https, or http where `may_be_plain`, with a host and without credentials or a fragment.
    ///
    /// # Errors
    /// What is wrong with it, to end a sentence that names it.
    pub(crate) fn read(url: &str, may_be_plain: bool) -> Result<Self, &'static str> {
        if url.contains('#') {
            return Err("has a fragment");
        }
        let uri: Uri = url.parse().map_err(|_| "is no URL")?;
        let authority = uri.authority().map(|authority| authority.as_str()).ok_or("is no whole URL")?;
        if authority.contains('@') {
            return Err("has credentials in it");
        }
        let uses_tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") if may_be_plain => false,
            _ => return Err("is not https"),
        };
        let host = uri.host().unwrap_or_default();
        // What is behind the host is a port, and none that cannot be read is taken for the usual one.
        let port = match (authority.len() > host.len(), uri.port_u16()) {
            (false, _) if uses_tls => HTTPS_PORT,
            (false, _) => HTTP_PORT,
            (true, Some(port)) if port > 0 => port,
            (true, _) => return Err("has no port that can be used"),
        };
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        if host.is_empty() {
            return Err("has no host");
        }
        let path = uri.path_and_query().map_or("", |path| path.as_str());
        // A query may follow the host at once; on the wire a path always begins with a slash (RFC 9112, section 3.2.1).
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        Ok(Self { uses_tls, host: host.to_owned(), port, authority: authority.to_owned(), path })
    }
}

/// True for an address of this machine alone.
pub(crate) fn is_here(address: IpAddr) -> bool {
    address.is_loopback()
}

/// True for an address of the public internet: what no registry of special addresses names (IANA, RFC 6890), and nothing that stands for
/// another address.
pub(crate) fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let special = match address.octets() {
        // This network; private; loopback.
        [0 | 10 | 127, ..] => true,
        // Between a provider and its customers (CGNAT).
        [100, second, ..] => (64..128).contains(&second),
        // Link-local, among them the metadata of cloud machines.
        [169, 254, ..] => true,
        // What a cloud answers its own machines under, though it looks public (Azure).
        [168, 63, 129, 16] => true,
        [172, second, ..] => (16..32).contains(&second),
        // Protocol assignments; documentation; 6to4's relays; private.
        [192, 0, 0 | 2, _] | [192, 88, 99, _] | [192, 168, ..] => true,
        // Benchmarks; documentation.
        [198, 18 | 19, ..] | [198, 51, 100, _] | [203, 0, 113, _] => true,
        // Multicast, reserved, broadcast.
        [first, ..] => first >= 224,
    };
    !special
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let special = match address.segments() {
        // ISATAP, under any prefix: the interface's id stands for an IPv4 address.
        [_, _, _, _, 0 | 0x200, 0x5efe, _, _] => true,
        // Protocol assignments (Teredo and ORCHID among them); documentation; 6to4, which stands for an IPv4 address; documentation.
        [0x2001, second, ..] => second < 0x200 || second == 0xdb8,
        [0x2002, ..] => true,
        [0x3fff, second, ..] => second < 0x1000,
        // Global unicast is 2000::/3. Outside are loopback, unspecified, IPv4-mapped and translated, ULA, link-local, multicast.
        [first, ..] => first & 0xe000 != 0x2000,
    };
    !special
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_the_public_internet_are_public() {
        let special = "0.0.0.0 0.1.2.3 10.0.0.1 127.0.0.1 127.255.255.255 100.64.0.1 100.127.255.255 169.254.169.254 172.16.0.1 \
            172.31.255.255 192.0.0.8 192.0.2.1 192.88.99.1 192.168.1.1 198.18.0.1 198.19.255.255 198.51.100.7 203.0.113.7 224.0.0.1 \
            168.63.129.16 239.1.1.1 240.0.0.1 255.255.255.255 :: ::1 ::ffff:1.1.1.1 ::ffff:127.0.0.1 ::127.0.0.1 64:ff9b::7f00:1 64:ff9b:1::1 \
            100::1 fc00::1 fdff::1 fe80::1 febf::1 fec0::1 ff02::1 2001::1 2001:1ff::1 2001:db8::1 2002:7f00:1:: 3fff:fff::1 \
            5f00::1 4000::1 2606:4700::5efe:10.0.0.1 2606:4700:0:1:200:5efe:a00:1";
        for address in special.split_whitespace() {
            assert!(!is_public(address.parse().unwrap()), "{address}");
        }
        let public = "1.1.1.1 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 169.253.1.1 168.63.129.17 172.15.1.1 172.32.0.1 192.0.1.1 \
            192.167.1.1 198.17.1.1 198.20.0.1 223.255.255.255 2606:4700::1111 2001:200::1 2001:4860:4860::8888 2a00::1 3fff:1000::1";
        for address in public.split_whitespace() {
            assert!(is_public(address.parse().unwrap()), "{address}");
        }
        assert!(is_here("127.0.0.1".parse().unwrap()) && is_here("::1".parse().unwrap()));
        assert!(!is_here("::ffff:127.0.0.1".parse().unwrap()) && !is_here("0.0.0.0".parse().unwrap()));
    }

    #[test]
    fn a_url_is_read_as_it_will_be_used_or_not_at_all() {
        let read = |url: &str| Target::read(url, false);
        let plain = read("https://hooks.example/approvals?team=a").unwrap();
        assert_eq!((plain.host.as_str(), plain.port, plain.path.as_str()), ("hooks.example", 443, "/approvals?team=a"));
        assert_eq!((plain.authority.as_str(), plain.uses_tls), ("hooks.example", true));
        let six = read("HTTPS://[2606:4700::1111]:8443").unwrap();
        assert_eq!((six.host.as_str(), six.port, six.path.as_str()), ("2606:4700::1111", 8443, "/"));
        assert_eq!(six.authority, "[2606:4700::1111]:8443");
        assert_eq!(read("https://hooks.example?team=a").unwrap().path, "/?team=a");
        for (url, why) in [
            ("http://hooks.example/", "is not https"),
            ("ftp://hooks.example/", "is not https"),
            ("hooks.example", "is not https"),
            ("/approvals", "is no whole URL"),
            ("https://", "is no URL"),
            ("https://user@hooks.example/", "has credentials in it"),
            ("https://user:secret@hooks.example/", "has credentials in it"),
            ("https://hooks.example:secret@127.0.0.1/", "has credentials in it"),
            ("https://hooks.example/#top", "has a fragment"),
            ("https://hooks.example:0/", "has no port that can be used"),
            ("https://hooks.example:/", "has no port that can be used"),
            ("https://hooks.example/a b", "is no URL"),
            ("https://hooks.example/\r\nX: y", "is no URL"),
        ] {
            assert_eq!(read(url), Err(why), "{url}");
        }
        assert!(read("https://hooks.example:99999/").is_err() && read("https://:443/").is_err() && read("https:///x").is_err());
        let here = Target::read("http://127.0.0.1:8080/x", true).unwrap();
        assert_eq!((here.uses_tls, here.port, Target::read("http://localhost", true).unwrap().port), (false, 8080, 80));
    }
}
