//! A real S3 server on loopback: versitygw over a folder, which outlives it.

use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use aegis_lake::{AccessKey, LakeError, S3Settings, open_s3};
use object_store::ObjectStore;
use tempfile::TempDir;
use tokio::time::Instant;

use crate::port::free_port;

const KEY: &str = "AKIDOFTHETESTS";
const SECRET: &str = "the-secret-of-the-tests";
const BUCKET: &str = "lakes";
const DEADLINE: Duration = Duration::from_secs(60);

fn binary() -> PathBuf {
    let cache = std::env::var_os("AEGIS_CACHE")
        .map_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache/aegis"), PathBuf::from);
    let found = cache.join("bin/versitygw");
    assert!(found.is_file(), "{} is missing: run scripts/setup.sh", found.display());
    found
}

/// A server with its own folder and one bucket; killed when it is dropped.
pub(crate) struct S3Server {
    folder: TempDir,
    port: u16,
    process: Option<Child>,
}

impl S3Server {
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("buckets").join(BUCKET)).unwrap();
        let mut server = Self { folder, port: free_port(), process: None };
        server.start_again();
        server
    }

    pub(crate) fn start_again(&mut self) {
        let log = std::fs::File::create(self.folder.path().join("log")).unwrap();
        let process = Command::new(binary())
            .args(["--port", &format!("127.0.0.1:{}", self.port), "--quiet", "posix"])
            .arg(self.folder.path().join("buckets"))
            .envs([("ROOT_ACCESS_KEY_ID", KEY), ("ROOT_SECRET_ACCESS_KEY", SECRET)])
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.process = Some(process);
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            let said = || std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            assert!(begun.elapsed() < DEADLINE, "the S3 server did not start: {}", said());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// A part of the bucket.
    pub(crate) fn store(&self, prefix: &str) -> Arc<dyn ObjectStore> {
        self.store_with(&format!("s3://{BUCKET}/{prefix}"), KEY, SECRET).unwrap()
    }

    pub(crate) fn store_with(&self, url: &str, id: &str, secret: &str) -> Result<Arc<dyn ObjectStore>, LakeError> {
        let endpoint = format!("http://127.0.0.1:{}", self.port);
        let settings = S3Settings { url: url.to_owned(), endpoint, path_style: true, ..S3Settings::default() };
        let key = AccessKey { id: id.to_owned(), secret: secret.to_owned(), token: None };
        open_s3(&settings, Arc::new(move || Ok(key.clone())))
    }

    pub(crate) fn key() -> (&'static str, &'static str) {
        (KEY, SECRET)
    }

    /// `STOP`: it hangs; `CONT`: it goes on.
    pub(crate) fn signal(&self, name: &str) {
        let process = self.process.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &process]).status().unwrap().success());
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        self.kill();
    }
}
