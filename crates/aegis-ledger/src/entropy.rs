//! Where ids, boot epochs and commitment keys get their randomness: the operating system, or in tests a fixed seed.

use aegis_model::{EventId, Timestamp};
use sha2::{Digest, Sha256};

use crate::LedgerError;

#[derive(Debug)]
pub(crate) enum Entropy {
    System,
    /// SHA-256 of (seed, counter): for corpora and tests that compare bytes.
    Seeded {
        seed: u64,
        counter: u64,
    },
}

impl Entropy {
    pub(crate) fn new(seed: Option<u64>) -> Self {
        match seed {
            None => Self::System,
            Some(seed) => Self::Seeded { seed, counter: 0 },
        }
    }

    /// `N` random bytes, at most 32.
    pub(crate) fn bytes<const N: usize>(&mut self) -> Result<[u8; N], LedgerError> {
        let mut bytes = [0u8; N];
        match self {
            Self::System => getrandom::fill(&mut bytes).map_err(|e| LedgerError::Random(e.to_string()))?,
            Self::Seeded { seed, counter } => {
                *counter += 1;
                let block = Sha256::new().chain_update(seed.to_be_bytes()).chain_update(counter.to_be_bytes()).finalize();
                for (to, from) in bytes.iter_mut().zip(block) {
                    *to = from;
                }
            }
        }
        Ok(bytes)
    }

    /// A UUIDv7 made at `now`.
    pub(crate) fn event_id(&mut self, now: Timestamp) -> Result<EventId, LedgerError> {
        let millis = u64::try_from(now.as_micros() / 1000).unwrap_or(0);
        Ok(uuid::Builder::from_unix_timestamp_millis(millis, &self.bytes()?).into_uuid())
    }

    /// A boot epoch: seconds since 1970 and 32 random bits, in hex. Time makes epochs sort, randomness keeps two starts of one
    /// cloned folder apart.
    pub(crate) fn boot_epoch(&mut self, now: Timestamp) -> Result<String, LedgerError> {
        let seconds = u64::try_from(now.as_micros() / 1_000_000).unwrap_or(0);
        Ok(format!("{seconds:08x}{}", hex::encode(self.bytes::<4>()?)))
    }
}
