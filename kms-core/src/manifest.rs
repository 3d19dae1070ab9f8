//! The digest of all rows of a tenant: a homomorphic set hash over the rows' MACs.
//!
//! LtHash (Bellare & Micciancio 1997; lattice form after Lewi et al. 2019, "Securing Update Propagation with
//! Homomorphic Hashing"), 1,024 lanes of 16 bits, SHA-256 in counter mode as the expansion. A row is added or removed
//! in constant time, however many rows there are, and the order does not matter.

use aws_lc_rs::digest::{Context, SHA256};

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
/// Bytes of one expansion block (SHA-256).
const BLOCK_BYTES: usize = 32;

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
        for (lane, term) in self.0.iter_mut().zip(expand(row)) {
            *lane = lane.wrapping_add(term);
        }
    }

    /// Removes a row.
    pub fn remove(&mut self, row: &RowMac) {
        for (lane, term) in self.0.iter_mut().zip(expand(row)) {
            *lane = lane.wrapping_sub(term);
        }
    }

    /// Returns the SHA-256 of the state: the digest that audit records carry.
    pub fn digest(&self) -> [u8; 32] {
        let mut hash = Context::new(&SHA256);
        hash.update(&self.to_bytes());
        let mut digest = [0; 32];
        digest.copy_from_slice(hash.finish().as_ref());
        digest
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

fn expand(row: &RowMac) -> impl Iterator<Item = u16> {
    let blocks = STATE_BYTES / BLOCK_BYTES;
    let row = row.0;
    (0..blocks).flat_map(move |block| {
        let mut hash = Context::new(&SHA256);
        hash.update(domain::MANIFEST_EXPAND);
        hash.update(&u32::try_from(block).unwrap_or(u32::MAX).to_be_bytes());
        hash.update(&row);
        let digest = hash.finish();
        let (lanes, _) = digest.as_ref().as_chunks::<2>();
        lanes.iter().map(|lane| u16::from_be_bytes(*lane)).collect::<Vec<_>>()
    })
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
