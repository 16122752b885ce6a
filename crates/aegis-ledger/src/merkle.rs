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
    let mut paths: Vec<Vec<Hash>> = vec![Vec::new(); receipt_hashes.len()];
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

/// The root that `path` leads to from leaf `index` of `size` (RFC 9162 section 2.1.3.2), or None if no such tree has that path.
pub(crate) fn root_of(receipt_hash: &Hash, index: u64, size: u64, path: &[Hash]) -> Option<Hash> {
    if index >= size || path.len() > MAX_PATH {
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

/// The bytes a commit signs: three lines, each ended by a line feed: the header, the size in decimal, the root in lower-case hex.
pub(crate) fn commit_statement(size: u64, root: &Hash) -> Vec<u8> {
    format!("{STATEMENT_HEADER}\n{size}\n{}\n", aegis_canon::hex_text(root)).into_bytes()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

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

    #[test]
    fn every_path_of_every_small_tree_leads_to_the_rfc_6962_root() {
        for size in 1..=40 {
            let hashes = hashes(size);
            let (root, paths) = tree(&hashes);
            assert_eq!(root, recursive_root(&hashes));
            for (index, path) in paths.iter().enumerate() {
                assert_eq!(root_of(&hashes[index], index as u64, size as u64, path), Some(root));
            }
        }
    }

    #[test]
    fn a_path_holds_for_its_own_place_only() {
        let hashes = hashes(11);
        let (root, paths) = tree(&hashes);
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
