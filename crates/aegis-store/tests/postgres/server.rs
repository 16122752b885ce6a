//! A Postgres server on loopback, in a folder of its own, that ends with this process.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use crate::port::free_port;

pub(crate) const PASSWORD: &str = "p@ss/word of the tests";
/// The same in a URL.
const IN_A_URL: &str = "p%40ss%2Fword%20of%20the%20tests";

/// Postgres refuses to run as root: there it is run as the user of its package. What it made goes when the standard input ends, which is when
/// whoever holds the other end does.
const RUN: &str = r#"
set -eu
bin=$1 data=$2 port=$3
as=""
if [ "$(id -u)" = 0 ]; then as="setpriv --reuid=postgres --regid=postgres --clear-groups"; chown -R postgres "$data"; fi
cd "$data"
$as "$bin/initdb" -D "$data/cluster" -U aegis -A scram-sha-256 --pwfile="$data/password" -E UTF8 --locale=C.UTF-8 --no-sync >"$data/log" 2>&1
$as "$bin/postgres" -D "$data/cluster" -p "$port" -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off -c max_connections=300 >>"$data/log" 2>&1 &
server=$!
cat >/dev/null
kill -INT $server 2>/dev/null || true
wait $server || true
rm -rf "$data"
"#;

/// The server's address, with a place for the database's name at its end.
pub(crate) fn address() -> &'static str {
    static SERVER: OnceLock<String> = OnceLock::new();
    SERVER.get_or_init(start)
}

fn binaries() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|entry| entry.path().join("bin"));
    let newest = versions.filter(|bin| bin.join("postgres").exists()).max();
    newest.expect("no Postgres below /usr/lib/postgresql; run scripts/setup.sh")
}

fn start() -> String {
    let folder = tempfile::Builder::new().prefix("aegis-postgres-").tempdir().unwrap().keep();
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::write(folder.join("password"), PASSWORD).unwrap();
    let port = free_port();
    let arguments = [binaries().display().to_string(), folder.display().to_string(), port.to_string()];
    let mut shell = Command::new("sh").args(["-c", RUN, "sh"]).args(arguments).stdin(Stdio::piped()).spawn().unwrap();
    shell.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    let is_ready = || std::fs::read_to_string(folder.join("log")).is_ok_and(|log| log.contains("ready to accept connections"));
    for _ in 0..600 {
        if is_ready() {
            // The other end of its standard input stays open as long as this process lives.
            std::mem::forget(shell);
            return format!("postgres://aegis:{IN_A_URL}@127.0.0.1:{port}/");
        }
        assert!(shell.try_wait().unwrap().is_none(), "Postgres does not start; see {}", folder.join("log").display());
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("Postgres is not ready after a minute; see {}", folder.join("log").display());
}
