//! A small HTTP client for one server, JSON in and out: what the demo and the command line call the API with.

use anyhow::Context;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{HeaderMap, Method, Request};
use hyper_util::client::legacy::Client as Hyper;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

/// A client of one base URL.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    base: String,
    http: Hyper<HttpConnector, Full<Bytes>>,
}

/// Status, headers and body of a reply.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Reply {
    /// The body as JSON; null where it is none.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }
}

impl Client {
    pub(crate) fn new(base: &str) -> Self {
        Self { base: base.trim_end_matches('/').to_owned(), http: Hyper::builder(TokioExecutor::new()).build_http() }
    }

    #[cfg(feature = "soc")]
    pub(crate) async fn get(&self, path: &str, key: &str) -> anyhow::Result<Reply> {
        self.send(Method::GET, path, &[("authorization", &format!("Bearer {key}"))], Vec::new()).await
    }

    #[cfg(feature = "soc")]
    pub(crate) async fn post(&self, path: &str, key: &str, body: &Value) -> anyhow::Result<Reply> {
        self.with_body(Method::POST, path, key, body).await
    }

    #[cfg(feature = "soc")]
    pub(crate) async fn put(&self, path: &str, key: &str, body: &Value) -> anyhow::Result<Reply> {
        self.with_body(Method::PUT, path, key, body).await
    }

    #[cfg(feature = "soc")]
    async fn with_body(&self, method: Method, path: &str, key: &str, body: &Value) -> anyhow::Result<Reply> {
        let headers = [("authorization", format!("Bearer {key}")), ("content-type", "application/json".to_owned())];
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        self.send(method, path, &headers, body.to_string().into_bytes()).await
    }

    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> anyhow::Result<Reply> {
        let uri = format!("{}{path}", self.base);
        let mut request = Request::builder().method(method).uri(&uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(Bytes::from(body))).with_context(|| format!("{uri} is not a usable address"))?;
        let response = self.http.request(request).await.with_context(|| format!("no answer from {uri}"))?;
        let (head, body) = response.into_parts();
        let body = body.collect().await.with_context(|| format!("the answer of {uri} broke off"))?.to_bytes();
        Ok(Reply { status: head.status.as_u16(), headers: head.headers, body })
    }
}
