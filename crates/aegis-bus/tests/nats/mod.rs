//! Real NATS servers on loopback.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod port;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;
use tokio::time::Instant;

use port::free_port;

/// How long a server may take to start on a machine that is busy.
const STARTED_WITHIN: Duration = Duration::from_secs(60);
/// How often it is looked whether it has.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Every server that `scripts/setup.sh` installs. A test without one would test nothing.
pub fn servers() -> Vec<PathBuf> {
    let cache = std::env::var_os("AEGIS_CACHE")
        .map_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache/aegis"), PathBuf::from);
    let found: Vec<PathBuf> = [PathBuf::from("/usr/sbin/nats-server"), cache.join("bin/nats-server")].into();
    for server in &found {
        assert!(server.is_file(), "{} is missing: run scripts/setup.sh", server.display());
    }
    found
}

/// A server with its own folder; killed when it is dropped.
pub struct Server {
    binary: PathBuf,
    folder: TempDir,
    port: u16,
    process: Option<Child>,
}

impl Server {
    pub fn start(binary: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut server = Self { binary: binary.to_owned(), folder, port: free_port(), process: None };
        server.start_again();
        server
    }

    /// A server with lines of configuration of its own.
    pub fn start_with(binary: &Path, configuration: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("extra.conf"), configuration).unwrap();
        let mut server = Self { binary: binary.to_owned(), folder, port: free_port(), process: None };
        server.start_again();
        server
    }

    /// Servers of one cluster that know of one another.
    pub fn start_cluster<const N: usize>(binaries: [&Path; N]) -> [Self; N] {
        let routes = [(); N].map(|()| free_port());
        let named: Vec<String> = routes.iter().map(|port| format!("\"nats://127.0.0.1:{port}\"")).collect();
        let mut places = routes.iter();
        let servers = binaries.map(|binary| {
            let port = places.next().unwrap();
            let cluster = format!("name: c, listen: \"127.0.0.1:{port}\", routes: [{}]", named.join(", "));
            Self::start_with(binary, &format!("server_name: s{port}\ncluster {{ {cluster} }}\n"))
        });
        for (asked, of) in servers.iter().flat_map(|asked| servers.iter().map(move |of| (asked, of))) {
            asked.wait_until_it_names(of);
        }
        servers
    }

    /// Until a client that comes to it is told of the other.
    fn wait_until_it_names(&self, other: &Self) {
        let place = format!("127.0.0.1:{}", other.port);
        let begun = Instant::now();
        while begun.elapsed() < STARTED_WITHIN {
            let mut said = String::new();
            let connection = std::net::TcpStream::connect(("127.0.0.1", self.port)).unwrap();
            BufReader::new(connection).read_line(&mut said).unwrap();
            if said.contains(&place) {
                return;
            }
            std::thread::sleep(LOOK_EVERY);
        }
        panic!("the servers of a cluster did not find each other");
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    pub fn start_again(&mut self) {
        let log = std::fs::File::create(self.folder.path().join("log")).unwrap();
        let process = Command::new(&self.binary)
            .arg("-c")
            .arg(self.configuration())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.process = Some(process);
        let begun = Instant::now();
        while begun.elapsed() < STARTED_WITHIN {
            let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            if log.contains("Server is ready") {
                return;
            }
            std::thread::sleep(LOOK_EVERY);
        }
        panic!("nats-server did not start: {}", std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default());
    }

    fn configuration(&self) -> PathBuf {
        let path = self.folder.path().join("server.conf");
        let extra = if self.folder.path().join("extra.conf").exists() { "include \"extra.conf\"" } else { "" };
        let store = self.folder.path().join("jetstream");
        let text = format!("listen: \"127.0.0.1:{}\"\njetstream {{ store_dir: {store:?} }}\n{extra}\n", self.port);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// `STOP`: it hangs; `CONT`: it goes on.
    pub fn signal(&self, name: &str) {
        let process = self.process.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &process]).status().unwrap().success());
    }

    /// A copy of what the server has on its disk.
    pub fn backup(&self) -> TempDir {
        let copy = tempfile::tempdir().unwrap();
        copy_folder(&self.folder.path().join("jetstream"), &copy.path().join("jetstream"));
        copy
    }

    /// Puts such a copy back.
    pub fn restore(&self, copy: &TempDir) {
        std::fs::remove_dir_all(self.folder.path().join("jetstream")).unwrap();
        copy_folder(&copy.path().join("jetstream"), &self.folder.path().join("jetstream"));
    }

    /// As a power cut does, less the disk's cache.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }
}

fn copy_folder(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Another address of the server: over it everything takes so long, each way.
pub async fn slow_way(server: &Server, takes: Duration) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("nats://{}", listener.local_addr().unwrap());
    let to = server.url().trim_start_matches("nats://").to_owned();
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let (near_out, near_in) = near.into_split();
            let (far_out, far_in) = tokio::net::TcpStream::connect(&to).await.unwrap().into_split();
            tokio::spawn(carry(near_out, far_in, takes));
            tokio::spawn(carry(far_out, near_in, takes));
        }
    });
    address
}

async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, takes: Duration) {
    let (sender, mut on_its_way) = tokio::sync::mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    tokio::spawn(async move {
        while let Some((due, bytes)) = on_its_way.recv().await {
            tokio::time::sleep_until(due).await;
            if to.write_all(&bytes).await.is_err() {
                break;
            }
        }
    });
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length) = from.read(&mut buffer).await {
        if length == 0 || sender.send((Instant::now() + takes, buffer[..length].to_vec())).is_err() {
            break;
        }
    }
}

/// Another address of the server, which can be cut: who came over it is thrown out, and nobody comes in until it is mended.
pub struct Way {
    pub url: String,
    is_whole: watch::Sender<bool>,
}

impl Way {
    pub async fn to(server: &Server) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("nats://{}", listener.local_addr().unwrap());
        let to = server.url().trim_start_matches("nats://").to_owned();
        let (is_whole, state) = watch::channel(true);
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                if !*state.borrow() {
                    continue;
                }
                let mut state = state.clone();
                let mut far = tokio::net::TcpStream::connect(&to).await.unwrap();
                tokio::spawn(async move {
                    let cut = async {
                        let _the_same = state.wait_for(|is_whole| !*is_whole).await;
                    };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        () = cut => {}
                    }
                });
            }
        });
        Self { url, is_whole }
    }

    pub fn cut(&self) {
        self.is_whole.send_replace(false);
    }

    pub fn mend(&self) {
        self.is_whole.send_replace(true);
    }
}
