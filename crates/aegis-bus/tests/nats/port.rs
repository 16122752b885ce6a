//! Ports for servers that must find their own again.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::net::TcpListener;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Below it are the ports of services that a machine may have.
const LOWEST: u16 = 10_000;
/// From here on they are those of tests/e2e/nats.py, which runs beside these tests.
const OF_OTHERS: u16 = 14_000;
/// Where clients leave fewer than this, theirs are taken.
const ENOUGH: u16 = 2_000;

/// A port of loopback that nobody has now, that this process gave to nobody before, and that no client will be given: while a server is down, a
/// connection of another test could take it.
pub(crate) fn free_port() -> u16 {
    static NEXT: LazyLock<AtomicU64> = LazyLock::new(|| AtomicU64::new(RandomState::new().build_hasher().finish()));
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
    let lowest_of_clients: u16 = range.split_whitespace().next().unwrap().parse().unwrap();
    let count = lowest_of_clients.min(OF_OTHERS).saturating_sub(LOWEST);
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = if count < ENOUGH { 0 } else { LOWEST + u16::try_from(number % u64::from(count)).unwrap() };
        if let Ok(probe) = TcpListener::bind(("127.0.0.1", port)) {
            return probe.local_addr().unwrap().port();
        }
    }
}
