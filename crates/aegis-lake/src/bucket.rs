//! A part of an S3 bucket as an object store. Owns how long is waited for it, how often it is asked again, and what is said when it refuses.
//! Promises that a request ends within some minutes whatever the store does, and that what is said of it has no key and no page of XML.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use object_store::aws::{AmazonS3, AmazonS3Builder, AwsCredential};
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{
    BackoffConfig, ClientOptions, CopyOptions, CredentialProvider, Error, GetOptions, GetResult, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, RetryConfig,
    coalesce_ranges,
};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::error::{LakeError, harmless};
use crate::s3::{KeySource, Place, current};

/// How long a connection may take to be there, and a request to be answered to its end: of files of some tens of megabytes.
const CONNECT: Duration = Duration::from_secs(5);
const REQUEST: Duration = Duration::from_secs(60);
/// How often a request is tried again that the store could not answer, with growing pauses; and until when.
const MOST_RETRIES: usize = 4;
const RETRY_FOR: Duration = Duration::from_secs(60);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Ranges that are no further apart are one request, bytes: a column that is not wanted costs less than another request.
const GAP: u64 = 32 << 10;
/// How long a key is used until it is asked for again.
const KEY_FOR: Duration = Duration::from_secs(10);
/// A proxy where nobody is, and all hosts and addresses, which are reached without it.
const NO_PROXY: &str = "http://127.0.0.1:9";
const EVERYWHERE: &str = "*,0.0.0.0/0,::/0";
/// The longest text of a failure, characters.
const MOST_SAID: usize = 300;

/// The store's name in its errors.
const STORE: &str = "S3";

/// Objects below a prefix of a bucket.
pub(crate) struct Bucket {
    objects: PrefixStore<AmazonS3>,
    /// The place for people.
    shown: Arc<str>,
}

impl Bucket {
    pub(crate) fn open(place: &Place, key: KeySource) -> std::result::Result<Arc<dyn ObjectStore>, LakeError> {
        let backoff = BackoffConfig { init_backoff: FIRST_PAUSE, max_backoff: LONGEST_PAUSE, base: 2.0 };
        let retry = RetryConfig { backoff, max_retries: MOST_RETRIES, retry_timeout: RETRY_FOR };
        let mut client = ClientOptions::new().with_timeout(REQUEST).with_connect_timeout(CONNECT).with_allow_http(place.is_plain);
        if place.is_plain {
            // One that is named here turns off that of the environment (`HTTP_PROXY`), which would read what may go to this place alone.
            client = client.with_proxy_url(NO_PROXY).with_proxy_excludes(EVERYWHERE);
        }
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(&place.bucket)
            .with_region(&place.region)
            .with_virtual_hosted_style_request(!place.path_style)
            .with_credentials(Arc::new(Keys { source: key, known: Mutex::new(None) }))
            .with_retry(retry)
            .with_client_options(client);
        if let Some(endpoint) = &place.endpoint {
            builder = builder.with_endpoint(endpoint);
        }
        let prefix = Path::parse(&place.prefix).map_err(Error::from)?;
        Ok(Arc::new(Self { objects: PrefixStore::new(builder.build()?, prefix), shown: place.shown().into() }))
    }
}

/// The key, asked for again from time to time.
struct Keys {
    source: KeySource,
    known: Mutex<Option<(Instant, Arc<AwsCredential>)>>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys")
    }
}

#[async_trait]
impl CredentialProvider for Keys {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> Result<Arc<AwsCredential>> {
        self.at(Instant::now())
    }
}

impl Keys {
    fn at(&self, now: Instant) -> Result<Arc<AwsCredential>> {
        let mut known = self.known.lock();
        if let Some((since, key)) = &*known
            && now.duration_since(*since) < KEY_FOR
        {
            return Ok(Arc::clone(key));
        }
        let key = current(&self.source).map_err(|error| Error::Generic { store: STORE, source: error.into() })?;
        let key = Arc::new(AwsCredential { key_id: key.id, secret_key: key.secret, token: key.token });
        *known = Some((now, Arc::clone(&key)));
        Ok(key)
    }
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

/// An error of the store as it is told: what it refuses and why in few words.
fn told(shown: &str, error: Error) -> Error {
    let other = |said: String| Error::Generic { store: STORE, source: said.into() };
    match error {
        Error::NotFound { path, source } => match code_of(&source.to_string()) {
            // Also of a key that it does not know, or of a bucket, some stores say that they do not find it: that is no object that is missing.
            Some(code) if code != "NoSuchKey" => other(format!("{shown}: {}", refused(&code))),
            _ => Error::NotFound { path, source: "there is no such object".into() },
        },
        Error::PermissionDenied { source, .. } | Error::Unauthenticated { source, .. } => {
            let code = code_of(&source.to_string()).unwrap_or_else(|| "no reason given".to_owned());
            other(format!("{shown}: {}", refused(&code)))
        }
        Error::Precondition { path, .. } => Error::Precondition { path, source: "another version is there".into() },
        Error::AlreadyExists { path, .. } => Error::AlreadyExists { path, source: "it is there".into() },
        Error::Generic { source, .. } => {
            let text = with_causes(&*source);
            match code_of(&text) {
                Some(code) if is_refusal(&code) => other(format!("{shown}: {}", refused(&code))),
                _ => other(format!("{shown}: {}", short(&text))),
            }
        }
        error => error,
    }
}

/// What a store's refusal means.
fn refused(code: &str) -> String {
    let advice = match code {
        "InvalidAccessKeyId"
        | "SignatureDoesNotMatch"
        | "InvalidToken"
        | "ExpiredToken"
        | "TokenRefreshRequired"
        | "XAdminUserNotFound" => {
            "the store does not accept the credentials; check access key, secret and session token, and lake.region"
        }
        "RequestTimeTooSkewed" => "the store's clock and this machine's are too far apart",
        "NoSuchBucket" => "there is no such bucket; make it, or check lake.url and lake.endpoint",
        "AccessDenied" => {
            "the access key may not do this; it has to list the bucket, and to read, write and delete below the prefix"
        }
        _ => "the store refused",
    };
    format!("{advice} ({code})")
}

fn is_refusal(code: &str) -> bool {
    !refused(code).starts_with("the store refused")
}

/// The code in a store's answer: `<Code>AccessDenied</Code>`.
fn code_of(text: &str) -> Option<String> {
    let (_, behind) = text.split_once("<Code>")?;
    let (code, _) = behind.split_once("</Code>")?;
    let is_code = !code.is_empty() && code.len() <= 64 && code.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.');
    is_code.then(|| code.to_owned())
}

/// An error, and what it comes from where that says more.
fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(one) = cause {
        let said = one.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = one.source();
    }
    text
}

/// One line of so many characters, and none that a terminal obeys. Of an answer of the store, what stands before its markup.
fn short(text: &str) -> String {
    let plain = text.split_once("<?xml").or_else(|| text.split_once("<Error>")).map_or(text, |(before, _)| before);
    let line = harmless(&plain.split_whitespace().collect::<Vec<_>>().join(" "));
    let mut cut: String = line.chars().take(MOST_SAID).collect();
    if cut.len() < line.len() {
        cut.push('…');
    }
    cut
}

/// The bytes of a range, if they are all there: what is cut out of them would else lie outside of them.
fn whole(bytes: Bytes, range: &Range<u64>) -> Result<Bytes> {
    let wanted = range.end.saturating_sub(range.start);
    if bytes.len() as u64 == wanted {
        return Ok(bytes);
    }
    let said = format!("the store gave {} bytes of an object, not {wanted}", bytes.len());
    Err(Error::Generic { store: STORE, source: said.into() })
}

#[async_trait]
impl ObjectStore for Bucket {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        self.objects.put_opts(location, payload, opts).await.map_err(|error| told(&self.shown, error))
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.objects.put_multipart_opts(location, opts).await.map_err(|error| told(&self.shown, error))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.objects.get_opts(location, options).await.map_err(|error| told(&self.shown, error))
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let fetch = move |range: Range<u64>| async move { whole(self.get_range(location, range.clone()).await?, &range) };
        coalesce_ranges(ranges, fetch, GAP).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let shown = Arc::clone(&self.shown);
        self.objects.delete_stream(locations).map(move |deleted| deleted.map_err(|error| told(&shown, error))).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let shown = Arc::clone(&self.shown);
        self.objects.list(prefix).map(move |listed| listed.map_err(|error| told(&shown, error))).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.objects.list_with_delimiter(prefix).await.map_err(|error| told(&self.shown, error))
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.objects.copy_opts(from, to, options).await.map_err(|error| told(&self.shown, error))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::s3::{AccessKey, S3Settings};

    fn answer(code: &str) -> Box<dyn std::error::Error + Send + Sync> {
        let body =
            format!("<?xml version=\"1.0\"?>\n<Error><Code>{code}</Code><AWSAccessKeyId>AKIDSECRET</AWSAccessKeyId></Error>");
        format!("Error performing GET http://h/lakes/x in 1ms - Server returned non-2xx status code: 403 Forbidden: {body}")
            .into()
    }

    #[test]
    fn what_the_store_refuses_is_told_in_few_words_and_without_the_key() {
        let path = || "x".to_owned();
        let said = |error: Error| told("s3://lakes/lake", error).to_string();
        for (error, words) in [
            (
                Error::PermissionDenied { path: path(), source: answer("SignatureDoesNotMatch") },
                "does not accept the credentials",
            ),
            (Error::Unauthenticated { path: path(), source: answer("InvalidAccessKeyId") }, "does not accept the credentials"),
            (Error::PermissionDenied { path: path(), source: answer("AccessDenied") }, "may not do this"),
            (Error::NotFound { path: path(), source: answer("NoSuchBucket") }, "no such bucket"),
            (Error::Generic { store: STORE, source: answer("ExpiredToken") }, "(ExpiredToken)"),
            (Error::Generic { store: STORE, source: answer("SlowDown") }, "403 Forbidden"),
            (Error::PermissionDenied { path: path(), source: "no body".into() }, "no reason given"),
        ] {
            let text = said(error);
            assert!(text.contains(words) && text.contains("s3://lakes/lake"), "{text}");
            assert!(!text.contains("AKIDSECRET") && !text.contains("<Error>"), "{text}");
        }
        // Only an object that is not there is one that is not there.
        assert!(matches!(told("s", Error::NotFound { path: path(), source: answer("NoSuchKey") }), Error::NotFound { .. }));
        assert!(matches!(told("s", Error::NotFound { path: path(), source: "no body".into() }), Error::NotFound { .. }));
        assert!(!matches!(told("s", Error::NotFound { path: path(), source: answer("NoSuchBucket") }), Error::NotFound { .. }));
        let long = said(Error::Generic { store: STORE, source: format!("\u{1b}[2J {}", "x".repeat(5000)).into() });
        assert!(long.chars().count() < MOST_SAID + 100 && !long.contains('\u{1b}'), "{long}");
    }

    #[tokio::test]
    async fn a_store_that_gives_less_than_it_says_is_an_error_and_no_panic() {
        let there = Bytes::from_static(b"0123456789");
        let ask = async |given: usize| {
            let fetch = |range: Range<u64>| {
                let given = there.slice(..given.min(there.len()));
                async move { whole(given, &range) }
            };
            coalesce_ranges(&[0..4, 8..10], fetch, GAP).await
        };
        assert_eq!(ask(10).await.unwrap(), [Bytes::from_static(b"0123"), Bytes::from_static(b"89")]);
        assert!(ask(5).await.unwrap_err().to_string().contains("gave 5 bytes of an object, not 10"));
    }

    #[test]
    fn a_key_that_was_exchanged_is_used_without_a_restart() {
        let current = Arc::new(Mutex::new("first".to_owned()));
        let of_source = Arc::clone(&current);
        let source: KeySource = Arc::new(move || Ok(AccessKey { id: of_source.lock().clone(), secret: "s".into(), token: None }));
        let keys = Keys { source, known: Mutex::new(None) };
        let now = Instant::now();
        assert_eq!(keys.at(now).unwrap().key_id, "first");
        *current.lock() = "second".to_owned();
        assert_eq!(keys.at(now).unwrap().key_id, "first");
        assert_eq!(keys.at(now + KEY_FOR).unwrap().key_id, "second");
    }

    #[test]
    fn what_is_shown_of_a_store_has_no_key() {
        let source: KeySource = Arc::new(|| Ok(AccessKey { id: "AKID".into(), secret: "the secret".into(), token: None }));
        let settings = S3Settings { url: "s3://lakes/x".into(), path_style: true, ..S3Settings::default() };
        let store = Bucket::open(&Place::of(&settings).unwrap(), source).unwrap();
        for shown in [format!("{store:?}"), store.to_string()] {
            assert_eq!(shown, "s3://lakes/x");
        }
    }
}
