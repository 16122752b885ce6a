//! The Merkle tree of a commit: RFC 6962 section 2.1 with SHA-256, over the receipt hashes in commit order.
//! Owns leaf and node hashing, inclusion paths, and the statement that a commit signs.

use sha2::{Digest, Sha256};

pub(crate) type Hash = [u8; 32];

/// Domain prefixes, so that no inner node can pass for a leaf (RFC 6962).
const LEAF_PREFIX: u8 = 0x00;
const NODE_PREFIX: u8 = 0x01;

/// The first line of every commit statement.
const STATEMENT_HEADER: &str = "aegis-commit-1";

/// The longest path that can be right: a tree of 2^63 leaves. Longer ones are refused before they are hashed.
pub(crate) const MAX_PATH: usize = 63;

/// The leaf of a receipt: its hash as 32 bytes is the leaf's data.
pub(crate) fn leaf_hash(receipt_hash: &Hash) -> Hash {
    Sha256::new().chain_update([LEAF_PREFIX]).chain_update(receipt_hash).finalize().into()
}

fn node_hash(left: &Hash, right: &Hash) -> Hash {
    Sha256::new().chain_update([NODE_PREFIX]).chain_update(left).chain_update(right).finalize().into()
}

/// The root over `receipt_hashes` (at least one) and each one's inclusion path, leaf to root.
pub(crate) fn tree(receipt_hashes: &[Hash]) -> (Hash, Vec<Vec<Hash>>) {
    let mut level: Vec<Hash> = receipt_hashes.iter().map(leaf_hash).collect();
    let levels = usize::BITS - receipt_hashes.len().saturating_sub(1).leading_zeros();
    let mut paths: Vec<Vec<Hash>> = receipt_hashes.iter().map(|_| Vec::with_capacity(levels as usize)).collect();
    let mut height = 0;
    while level.len() > 1 {
        for (index, path) in paths.iter_mut().enumerate() {
            let sibling = (index >> height) ^ 1;
            // The last node of an odd level has no sibling and moves up as it is; its path skips the level.
            if let Some(hash) = level.get(sibling) {
                path.push(*hash);
            }
        }
        level = level.chunks(2).map(|pair| if let [left, right] = pair { node_hash(left, right) } else { pair[0] }).collect();
        height += 1;
    }
    (level.first().copied().unwrap_or_default(), paths)
}

/// The way from a leaf to its root: one step for each hash of its path, with where the node before it stands. Remembered, because the
/// ways of neighbours soon meet, and from there on they are one.
#[derive(Debug, Default)]
pub(crate) struct Climb {
    steps: Vec<Step>,
    path: Vec<Hash>,
    root: Hash,
}

/// A node on the way: its place in its level, the level's last place, and its hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Step {
    position: u64,
    last: u64,
    node: Hash,
}

impl Step {
    /// The node above, with `sibling` beside this one. None: this is the root already.
    fn up(self, sibling: &Hash) -> Option<Self> {
        let Self { mut position, mut last, node } = self;
        if last == 0 {
            return None;
        }
        let above = if position & 1 == 1 || position == last {
            while position & 1 == 0 && position != 0 {
                position >>= 1;
                last >>= 1;
            }
            node_hash(sibling, &node)
        } else {
            node_hash(&node, sibling)
        };
        Some(Self { position: position >> 1, last: last >> 1, node: above })
    }
}

impl Climb {
    /// The root that `path` leads to from leaf `index` of `size` (RFC 9162 section 2.1.3.2), or None if no such tree has that path.
    /// Hashes only up to where the last way is met: from one node, by one path, there is one root.
    pub(crate) fn root_of(&mut self, receipt_hash: &Hash, index: u64, size: u64, path: &[Hash]) -> Option<Hash> {
        if index >= size || path.len() > MAX_PATH {
            return None;
        }
        let mut step = Step { position: index, last: size - 1, node: leaf_hash(receipt_hash) };
        let mut steps = Vec::with_capacity(path.len());
        for (place, sibling) in path.iter().enumerate() {
            let rest = &path[place..];
            if let Some(known) = self.path.len().checked_sub(rest.len())
                && self.steps[known] == step
                && self.path[known..] == *rest
            {
                steps.extend_from_slice(&self.steps[known..]);
                return Some(self.remember(steps, path, self.root));
            }
            steps.push(step);
            step = step.up(sibling)?;
        }
        (step.last == 0).then(|| self.remember(steps, path, step.node))
    }

    fn remember(&mut self, steps: Vec<Step>, path: &[Hash], root: Hash) -> Hash {
        self.steps = steps;
        self.path.clear();
        self.path.extend_from_slice(path);
        self.root = root;
        root
    }
}

/// The bytes a commit signs: three lines, each ended by a line feed: the header, the size in decimal, the root in lower-case hex.
pub(crate) fn commit_statement(size: u64, root: &Hash) -> Vec<u8> {
    format!("{STATEMENT_HEADER}\n{size}\n{}\n", aegis_canon::hex_text(root)).into_bytes()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hashes(count: usize) -> Vec<Hash> {
        (0..count).map(|i| Sha256::digest(i.to_be_bytes()).into()).collect()
    }

    /// RFC 6962 section 2.1 word for word, as an oracle for the level-by-level tree.
    fn recursive_root(hashes: &[Hash]) -> Hash {
        match hashes {
            [only] => leaf_hash(only),
            _ => {
                let mut split = 1;
                while split * 2 < hashes.len() {
                    split *= 2;
                }
                node_hash(&recursive_root(&hashes[..split]), &recursive_root(&hashes[split..]))
            }
        }
    }

    /// RFC 9162 section 2.1.3.2 word for word, every hash of the path taken, as an oracle for the remembered way.
    fn root_of(receipt_hash: &Hash, index: u64, size: u64, path: &[Hash]) -> Option<Hash> {
        if index >= size {
            return None;
        }
        let mut node = leaf_hash(receipt_hash);
        let (mut position, mut last) = (index, size - 1);
        for sibling in path {
            if last == 0 {
                return None;
            }
            if position & 1 == 1 || position == last {
                node = node_hash(sibling, &node);
                while position & 1 == 0 && position != 0 {
                    position >>= 1;
                    last >>= 1;
                }
            } else {
                node = node_hash(&node, sibling);
            }
            position >>= 1;
            last >>= 1;
        }
        (last == 0).then_some(node)
    }

    proptest! {
        /// Neighbours, the same leaf again, other trees, and paths that were tampered with, in any order.
        #[test]
        fn a_remembered_way_changes_no_answer(
            questions in prop::collection::vec((0..4usize, 0..40usize, 0..8usize, 0..8usize, any::<bool>()), 1..60)
        ) {
            let mut climb = Climb::default();
            for (tree_of, index, at, kind, near) in questions {
                let size = [1, 7, 16, 33][tree_of];
                let hashes = hashes(size);
                let (_, paths) = tree(&hashes);
                let index = if near { index.min(2) } else { index } % size;
                let mut path = paths[index].clone();
                let mut claimed = (index as u64, size as u64);
                match kind {
                    0 if !path.is_empty() => { let at = at % path.len(); path[at][at] ^= 1; }
                    1 if !path.is_empty() => drop(path.pop()),
                    2 if !path.is_empty() => drop(path.remove(0)),
                    3 => path.push([7; 32]),
                    4 => claimed.0 ^= 1,
                    5 => claimed.1 += 1,
                    _ => {}
                }
                let answer = climb.root_of(&hashes[index], claimed.0, claimed.1, &path);
                prop_assert_eq!(answer, root_of(&hashes[index], claimed.0, claimed.1, &path));
            }
        }
    }

    #[test]
    fn every_path_of_every_small_tree_leads_to_the_rfc_6962_root() {
        for size in 1..=40 {
            let hashes = hashes(size);
            let (root, paths) = tree(&hashes);
            assert_eq!(root, recursive_root(&hashes));
            let mut climb = Climb::default();
            for (index, path) in paths.iter().enumerate() {
                assert_eq!(climb.root_of(&hashes[index], index as u64, size as u64, path), Some(root));
                assert_eq!(root_of(&hashes[index], index as u64, size as u64, path), Some(root));
            }
        }
    }

    #[test]
    fn a_path_holds_for_its_own_place_only() {
        let hashes = hashes(11);
        let (root, paths) = tree(&hashes);
        let root_of = |hash: &Hash, index, size, path: &[Hash]| Climb::default().root_of(hash, index, size, path);
        for index in 0..11u64 {
            for claimed in (0..12u64).filter(|claimed| *claimed != index) {
                assert_ne!(root_of(&hashes[index as usize], claimed, 11, &paths[index as usize]), Some(root));
            }
            let longer: Vec<Hash> = paths[index as usize].iter().copied().chain([root]).collect();
            assert_eq!(root_of(&hashes[index as usize], index, 11, &longer), None);
            let shorter = &paths[index as usize][1..];
            assert_ne!(root_of(&hashes[index as usize], index, 11, shorter), Some(root));
        }
    }

    #[test]
    fn the_statement_is_three_lines() {
        let statement = commit_statement(7, &[0xab; 32]);
        assert_eq!(String::from_utf8(statement).unwrap(), format!("aegis-commit-1\n7\n{}\n", "ab".repeat(32)));
    }
}
