//! Where a lake on S3 lies, and with which key it is reached: checked before anything goes over the network.
//! Promises that a key goes over TLS, to this machine, or to the one host that was named for going without; and that nothing shows it.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use object_store::ObjectStore;

use crate::error::LakeError;

/// The region that is meant where none is named.
const REGION: &str = "us-east-1";
/// How long a bucket's name may be: S3, "General purpose bucket naming rules".
const BUCKET_CHARACTERS: std::ops::RangeInclusive<usize> = 3..=63;
const MOST_PREFIX: usize = 512;
/// Longest part of a key, bytes: tokens of sessions are one to two thousand.
const MOST_KEY: usize = 4096;

/// A lake's place in an S3 store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct S3Settings {
    /// `s3://bucket` or `s3://bucket/prefix`.
    pub url: String,
    /// `https://host[:port]`; empty: AWS's of the region.
    pub endpoint: String,
    /// Empty: `us-east-1`.
    pub region: String,
    /// The bucket in the path of an address; else in front of the host's name.
    pub path_style: bool,
    /// The one host that is reached over plain HTTP though it is not this machine; empty: none.
    pub http_host: String,
}

/// A key of the store. Nothing shows its secret.
#[derive(Clone, PartialEq, Eq)]
pub struct AccessKey {
    pub id: String,
    pub secret: String,
    /// Of a key that lasts for a session.
    pub token: Option<String>,
}

impl fmt::Debug for AccessKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessKey").finish_non_exhaustive()
    }
}

/// Gives the key as it is now, or says why there is none: asked again every few seconds, so that one can be exchanged while the program runs.
pub type KeySource = Arc<dyn Fn() -> Result<AccessKey, String> + Send + Sync>;

/// The key as it is now, if it can be one: its parts stand in headers.
pub(crate) fn current(key: &KeySource) -> Result<AccessKey, String> {
    let key = key()?;
    let is_word = |text: &str| !text.is_empty() && text.len() <= MOST_KEY && text.bytes().all(|b| b.is_ascii_graphic());
    if is_word(&key.id) && is_word(&key.secret) && key.token.as_deref().is_none_or(is_word) {
        return Ok(key);
    }
    Err("the key for the bucket has something that no key has: a space, the end of a line, no characters at all".to_owned())
}

/// Settings that were checked.
#[cfg_attr(not(feature = "s3"), allow(dead_code))]
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) bucket: String,
    pub(crate) prefix: String,
    /// Where requests go, the bucket in front where the path does not have it. None: AWS's of the region.
    pub(crate) endpoint: Option<String>,
    pub(crate) region: String,
    pub(crate) path_style: bool,
    pub(crate) is_plain: bool,
}

impl Place {
    pub(crate) fn of(settings: &S3Settings) -> Result<Self, LakeError> {
        let (bucket, prefix) = bucket_and_prefix(&settings.url)?;
        let region = if settings.region.is_empty() { REGION } else { settings.region.as_str() };
        if !region.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
            return Err(LakeError::Settings(format!("lake.region: `{}` is not a region's name", region.escape_debug())));
        }
        let endpoint = match settings.endpoint.as_str() {
            "" => None,
            text => Some(Endpoint::parse(text, &settings.http_host)?),
        };
        let is_plain = endpoint.as_ref().is_some_and(|endpoint| endpoint.is_plain);
        let endpoint = endpoint.map(|endpoint| endpoint.address((!settings.path_style).then_some(bucket.as_str())));
        Ok(Self { bucket, prefix, endpoint, region: region.to_owned(), path_style: settings.path_style, is_plain })
    }

    /// The place for people.
    pub(crate) fn shown(&self) -> String {
        let slash = if self.prefix.is_empty() { "" } else { "/" };
        let at = self.endpoint.as_ref().map_or_else(String::new, |endpoint| format!(" at {endpoint}"));
        format!("s3://{}{slash}{}{at}", self.bucket, self.prefix)
    }
}

fn bucket_and_prefix(url: &str) -> Result<(String, String), LakeError> {
    // What is wrong is not repeated: somebody may have written a key into it.
    let wrong = |what: &str| LakeError::Settings(format!("lake.url: {what}; it is `s3://bucket` or `s3://bucket/prefix`"));
    let rest = url.strip_prefix("s3://").ok_or_else(|| wrong("it does not begin with `s3://`"))?;
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let is_name = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    if !BUCKET_CHARACTERS.contains(&bucket.len()) || !bucket.bytes().all(is_name) || bucket.contains("..") {
        return Err(wrong(
            "the bucket's name has 3 to 63 of a to z, 0 to 9, `-` and `.`, and nothing else is before the first `/`",
        ));
    }
    let prefix = prefix.trim_end_matches('/');
    let is_part = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'=');
    let is_in_order = |part: &str| !part.is_empty() && part != "." && part != ".." && part.bytes().all(is_part);
    if prefix.len() > MOST_PREFIX || !(prefix.is_empty() || prefix.split('/').all(is_in_order)) {
        return Err(wrong("the prefix has letters, digits and `-_.=` between single slashes"));
    }
    Ok((bucket.to_owned(), prefix.to_owned()))
}

struct Endpoint<'a> {
    is_plain: bool,
    /// Host and port.
    authority: &'a str,
}

impl<'a> Endpoint<'a> {
    fn parse(text: &'a str, http_host: &str) -> Result<Self, LakeError> {
        let wrong =
            |what: &str| LakeError::Settings(format!("lake.endpoint: {what}; it is `https://host` or `https://host:port`"));
        let (is_plain, rest) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
            (Some(rest), _) => (false, rest),
            (None, Some(rest)) => (true, rest),
            (None, None) => return Err(wrong("it does not begin with `https://`")),
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        let is_character = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b':' | b'[' | b']');
        let host = host_of(authority).ok_or_else(|| wrong("it has no host, or no port behind the colon"))?;
        if !authority.bytes().all(is_character) {
            return Err(wrong("it has something beside a host and a port"));
        }
        let is_here = host.eq_ignore_ascii_case("localhost") || host.parse().is_ok_and(|address: IpAddr| address.is_loopback());
        let is_allowed = !http_host.is_empty() && host.eq_ignore_ascii_case(http_host);
        if is_plain && !is_here && !is_allowed {
            return Err(LakeError::Settings(format!(
                "lake.endpoint: plain http to {host} would show every event to whoever is on the way; use https, or name the host as lake.http_host"
            )));
        }
        Ok(Self { is_plain, authority })
    }

    fn address(&self, bucket: Option<&str>) -> String {
        let scheme = if self.is_plain { "http" } else { "https" };
        match bucket {
            Some(bucket) => format!("{scheme}://{bucket}.{}", self.authority),
            None => format!("{scheme}://{}", self.authority),
        }
    }
}

/// The host of `host`, `host:port`, `[v6]` or `[v6]:port`.
fn host_of(authority: &str) -> Option<&str> {
    let (host, behind) = match authority.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let is_port = |port: &str| port.parse::<u16>().is_ok_and(|port| port > 0);
    let is_in_order = behind.is_empty() || behind.strip_prefix(':').is_some_and(is_port);
    (is_in_order && !host.is_empty()).then_some(host)
}

/// The store of a lake on S3. Nothing is asked of it yet.
pub fn open_s3(settings: &S3Settings, key: KeySource) -> Result<Arc<dyn ObjectStore>, LakeError> {
    let place = Place::of(settings)?;
    // Asked for at once, so that a key that is missing is told of at the start.
    current(&key).map_err(LakeError::Settings)?;
    store_of(&place, key)
}

#[cfg(feature = "s3")]
fn store_of(place: &Place, key: KeySource) -> Result<Arc<dyn ObjectStore>, LakeError> {
    crate::bucket::Bucket::open(place, key)
}

#[cfg(not(feature = "s3"))]
fn store_of(place: &Place, _key: KeySource) -> Result<Arc<dyn ObjectStore>, LakeError> {
    Err(LakeError::Settings(format!("{}: this program was built without S3 (its feature `s3`)", place.shown())))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn settings(url: &str, endpoint: &str) -> S3Settings {
        S3Settings { url: url.into(), endpoint: endpoint.into(), path_style: true, ..S3Settings::default() }
    }

    #[test]
    fn a_place_is_a_bucket_with_or_without_a_prefix() {
        let place = |url: &str| Place::of(&settings(url, "")).map(|place| (place.bucket, place.prefix));
        assert_eq!(place("s3://lakes").unwrap(), ("lakes".into(), String::new()));
        assert_eq!(place("s3://lakes/").unwrap(), ("lakes".into(), String::new()));
        assert_eq!(place("s3://my.lakes-1/prod/eu=1/").unwrap(), ("my.lakes-1".into(), "prod/eu=1".into()));
        for wrong in [
            "",
            "lakes",
            "https://lakes",
            "s3://",
            "s3://ab",
            "s3://Lakes",
            "s3:///x",
            "s3://a..b/x",
            "s3://key:secret@lakes/x",
            "s3://lakes/a//b",
            "s3://lakes/../b",
            "s3://lakes/a?b",
            "s3://lakes/a b",
            "s3://lakes/\u{1b}[2J",
        ] {
            let error = place(wrong).unwrap_err().to_string();
            assert!(
                error.starts_with("lake.url: ") && !error.contains("secret") && !error.contains('\u{1b}'),
                "{wrong}: {error}"
            );
        }
        assert!(place(&format!("s3://lakes/{}", "p".repeat(MOST_PREFIX + 1))).is_err());
    }

    #[test]
    fn a_key_goes_over_tls_or_stays_here_or_goes_where_it_was_allowed_by_name() {
        let of = |endpoint: &str, http_host: &str| {
            let settings = S3Settings { http_host: http_host.into(), ..settings("s3://lakes/x", endpoint) };
            Place::of(&settings).map(|place| (place.endpoint.unwrap(), place.is_plain))
        };
        for secure in ["https://s3.example.com", "https://s3.example.com:9000", "https://10.0.0.1", "https://[2001:db8::1]:9000"]
        {
            assert_eq!(of(secure, "").unwrap(), (secure.to_owned(), false));
        }
        assert_eq!(of("https://s3.example.com/", "").unwrap().0, "https://s3.example.com");
        for here in ["http://127.0.0.1:9000", "http://localhost", "http://[::1]:9000", "http://127.9.9.9"] {
            assert_eq!(of(here, "").unwrap(), (here.to_owned(), true));
        }
        for plain in [
            "http://s3.example.com",
            "http://10.0.0.1:9000",
            "http://0.0.0.0",
            "http://localhost.example.com",
            "http://127.0.0.1.example.com",
            "http://[2001:db8::1]",
        ] {
            for allowed in ["", "other.example.com", "127.0.0.1"] {
                assert!(of(plain, allowed).unwrap_err().to_string().contains("lake.http_host"), "{plain}");
            }
        }
        assert!(of("http://minio.storage:9000", "minio.storage").unwrap().1);
        assert!(!of("https://minio.storage:9000", "minio.storage").unwrap().1, "TLS where it is named");
        for wrong in [
            "s3.example.com",
            "ftp://x",
            "https://",
            "http://key:secret@127.0.0.1",
            "https://host/path",
            "https://host?x",
            "https://host:0",
            "https://host:port",
            "https://host:",
            "http://127.0.0.1:9000@evil.example.com",
            "https://[::1",
            "https://ho st",
        ] {
            let error = of(wrong, "").unwrap_err().to_string();
            assert!(error.starts_with("lake.endpoint: ") && !error.contains("secret"), "{wrong}: {error}");
        }
    }

    #[test]
    fn a_bucket_in_front_of_the_host_is_part_of_the_address() {
        let place =
            Place::of(&S3Settings { path_style: false, ..settings("s3://lakes/x", "https://s3.example.com:9000") }).unwrap();
        assert_eq!(place.endpoint.as_deref(), Some("https://lakes.s3.example.com:9000"));
        assert_eq!(place.region, "us-east-1");
        let place = Place::of(&S3Settings { region: "EU 1".into(), ..settings("s3://lakes", "") });
        assert!(place.unwrap_err().to_string().contains("lake.region"));
    }

    #[test]
    fn a_key_is_shown_nowhere_and_one_that_is_missing_is_told_of_at_once() {
        let key = AccessKey { id: "AKID".into(), secret: "the secret".into(), token: Some("the token".into()) };
        let shown = format!("{key:?}");
        assert!(!shown.contains("the secret") && !shown.contains("the token") && !shown.contains("AKID"), "{shown}");
        for (id, secret, token) in
            [("AKID\n", "s", None), ("AKID", "the secret\r\nx: y", None), ("AKID", "s", Some("t t")), ("", "s", None)]
        {
            let key = AccessKey { id: id.into(), secret: secret.into(), token: token.map(str::to_owned) };
            let error = current(&(Arc::new(move || Ok(key.clone())) as KeySource)).unwrap_err();
            assert!(error.contains("the end of a line") && !error.contains("the secret"), "{error}");
        }
        let missing: KeySource = Arc::new(|| Err("there is no key".to_owned()));
        assert!(open_s3(&settings("s3://lakes", ""), missing).unwrap_err().to_string().contains("there is no key"));
    }
}
