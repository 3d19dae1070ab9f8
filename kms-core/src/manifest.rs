//! The digest of all rows of a tenant: a homomorphic set hash over the rows' MACs.
//!
//! LtHash (Bellare & Micciancio 1997; lattice form after Lewi et al. 2019, "Securing Update Propagation with
//! Homomorphic Hashing"), 1,024 lanes of 16 bits, SHA-256 in counter mode as the expansion. A row is added or removed
//! in constant time, however many rows there are, and the order does not matter.

use aws_lc_rs::digest::{SHA256, digest};

use crate::audit::ManifestStamp;
use crate::canonical::CanonicalWriter;
use crate::domain;
use crate::id::{Revision, RootGeneration};
use crate::key::RowMac;
use crate::name::TenantName;

/// Number of 16-bit lanes.
const LANES: usize = 1024;
/// Length of the state in bytes.
pub const STATE_BYTES: usize = LANES * 2;
/// Bytes of a row's MAC.
const MAC_BYTES: usize = 32;
/// Lanes of one expansion block (SHA-256).
const BLOCK_LANES: usize = 16;
/// Bytes that are hashed for a block: domain, number, MAC. SHA-256 takes up to 55 in one round, and a row is 64 blocks.
const INPUT_BYTES: usize = domain::MANIFEST_EXPAND.len() + size_of::<u32>() + MAC_BYTES;
const _: () = assert!(INPUT_BYTES <= 55 && LANES.is_multiple_of(BLOCK_LANES));

/// The state of a set hash.
#[derive(Clone, PartialEq, Eq)]
pub struct RowSet(Vec<u16>);

impl RowSet {
    /// Returns the hash of no rows.
    pub fn empty() -> Self {
        Self(vec![0; LANES])
    }

    /// Reads a stored state; `None` when the length is wrong.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != STATE_BYTES {
            return None;
        }
        let (lanes, _) = bytes.as_chunks::<2>();
        Some(Self(lanes.iter().map(|lane| u16::from_be_bytes(*lane)).collect()))
    }

    /// Writes the state.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|lane| lane.to_be_bytes()).collect()
    }

    /// Adds a row.
    pub fn insert(&mut self, row: &RowMac) {
        self.expand(row, u16::wrapping_add);
    }

    /// Removes a row.
    pub fn remove(&mut self, row: &RowMac) {
        self.expand(row, u16::wrapping_sub);
    }

    fn expand(&mut self, row: &RowMac, combine: impl Fn(u16, u16) -> u16) {
        let (blocks, _) = self.0.as_chunks_mut::<BLOCK_LANES>();
        for (number, lanes) in (0_u32..).zip(blocks) {
            let mut input = [0; INPUT_BYTES];
            let (start, rest) = input.split_at_mut(domain::MANIFEST_EXPAND.len());
            let (middle, end) = rest.split_at_mut(size_of::<u32>());
            start.copy_from_slice(domain::MANIFEST_EXPAND);
            middle.copy_from_slice(&number.to_be_bytes());
            end.copy_from_slice(&row.0);
            let block = digest(&SHA256, &input);
            let (terms, _) = block.as_ref().as_chunks::<2>();
            for (lane, term) in lanes.iter_mut().zip(terms) {
                *lane = combine(*lane, u16::from_be_bytes(*term));
            }
        }
    }

    /// Returns the SHA-256 of the state: the digest that audit records carry.
    pub fn digest(&self) -> [u8; 32] {
        let mut state = [0; 32];
        state.copy_from_slice(digest(&SHA256, &self.to_bytes()).as_ref());
        state
    }
}

impl std::fmt::Debug for RowSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RowSet({})", data_encoding::HEXLOWER.encode(&self.digest()))
    }
}

/// What a tenant's rows were after its last mutation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The tenant.
    pub tenant: TenantName,
    /// Counts the mutations of the tenant.
    pub revision: Revision,
    /// The set hash of the MACs of its key and version rows.
    pub rows: RowSet,
}

impl Manifest {
    /// Returns the manifest of a tenant without rows.
    pub fn empty(tenant: TenantName) -> Self {
        Self { tenant, revision: Revision::new(0), rows: RowSet::empty() }
    }

    /// Returns what audit records say of it.
    pub fn stamp(&self) -> ManifestStamp {
        let digest = data_encoding::HEXLOWER.encode(&self.rows.digest());
        ManifestStamp { revision: self.revision, digest }
    }

    /// Returns the bytes whose MAC is stored beside the manifest.
    pub fn mac_input(&self, generation: RootGeneration) -> Vec<u8> {
        let Self { tenant, revision, rows } = self;
        CanonicalWriter::new(domain::MANIFEST_MAC)
            .text(tenant.id())
            .number(revision.get())
            .number(generation.get().into())
            .bytes(&rows.to_bytes())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_does_not_matter_and_removal_undoes() {
        let (a, b) = (RowMac([1; 32]), RowMac([2; 32]));
        let mut ab = RowSet::empty();
        ab.insert(&a);
        ab.insert(&b);
        let mut ba = RowSet::empty();
        ba.insert(&b);
        ba.insert(&a);
        assert_eq!(ab.digest(), ba.digest());
        ab.remove(&a);
        ab.remove(&b);
        assert_eq!(ab, RowSet::empty());
    }

    /// Computed by Python's hashlib from the definition in docs/formats.md.
    #[test]
    fn the_hash_of_two_rows_added_and_one_taken_is_the_published_one() {
        let mut set = RowSet::empty();
        set.insert(&RowMac([1; 32]));
        set.insert(&RowMac([2; 32]));
        set.remove(&RowMac([3; 32]));
        let published = "349743a84d5910043b23161a588a68dfa188e6f4b0511bbfe215b7a34cb7c552";
        assert_eq!(data_encoding::HEXLOWER.encode(&set.digest()), published);
    }

    #[test]
    fn a_row_twice_differs_from_none_and_from_once() {
        let row = RowMac([3; 32]);
        let mut set = RowSet::empty();
        set.insert(&row);
        let once = set.digest();
        set.insert(&row);
        assert_ne!(set.digest(), once);
        assert_ne!(set.digest(), RowSet::empty().digest());
    }

    #[test]
    fn a_stamp_names_revision_and_rows() {
        let mut manifest = Manifest::empty(TenantName::from_id("t").unwrap());
        let empty = manifest.stamp();
        assert_eq!(empty.revision, Revision::new(0));
        manifest.revision = Revision::FIRST;
        manifest.rows.insert(&RowMac([5; 32]));
        let digest = data_encoding::HEXLOWER.encode(&manifest.rows.digest());
        assert_eq!(manifest.stamp(), ManifestStamp { revision: Revision::FIRST, digest });
        assert_ne!(manifest.stamp().digest, empty.digest);
    }

    #[test]
    fn state_reads_back_and_other_lengths_are_refused() {
        let mut set = RowSet::empty();
        set.insert(&RowMac([4; 32]));
        assert_eq!(RowSet::from_bytes(&set.to_bytes()), Some(set));
        assert_eq!(RowSet::from_bytes(&[0; STATE_BYTES - 1]), None);
        assert_eq!(RowSet::from_bytes(&[0; STATE_BYTES + 2]), None);
    }
}
