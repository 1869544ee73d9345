//! Opened blocks: footers are read once and kept while they are in use, within bounds.
//!
//! Opening a block means fetching and parsing its footer, which every query would repeat. This cache keeps the most recently used readers,
//! bounded in number and in bytes of footer; two queries that want the same block at the same time open it once. A block that leaves the
//! list leaves the cache. A reader that falls out lives on in the queries that hold it. A block whose bloom filters say that it lacks a
//! trace is not opened for it: only the filters that were read are kept.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use parking_lot::Mutex;
use storage::{
    backend::Store,
    block::{BlockError, Filters, Meta, Reader},
    blocklist::Blocklist,
    id::{BlockId, Tenant, TraceId},
};
use tokio::sync::OnceCell;

/// A block: its filters, and its reader once it is opened.
#[derive(Debug)]
struct Slot {
    filters: Arc<Filters>,
    reader: OnceCell<Arc<Reader>>,
}

/// The opened blocks of all tenants.
#[derive(Debug)]
pub(super) struct OpenBlocks {
    max_blocks: usize,
    max_bytes: u64,
    entries: Mutex<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    slots: HashMap<(Tenant, BlockId), Entry>,
    bytes: u64,
    uses: u64,
    /// [`Blocklist::departures`] when this was last compared with the list.
    departures: u64,
}

#[derive(Debug)]
struct Entry {
    slot: Arc<Slot>,
    bytes: u64,
    last_use: u64,
}

impl OpenBlocks {
    /// At most `max_blocks` readers with footers of `max_bytes` together; at least one.
    pub(super) fn new(max_blocks: usize, max_bytes: u64) -> Self {
        Self { max_blocks: max_blocks.max(1), max_bytes, entries: Mutex::default() }
    }

    /// The reader of a block, opened if it is not.
    pub(super) async fn open(&self, store: &Store, meta: &Arc<Meta>) -> Result<Arc<Reader>, BlockError> {
        let slot = self.slot(meta);
        let open = || async { Reader::open_with(store, Arc::clone(meta), Arc::clone(&slot.filters)).await.map(Arc::new) };
        slot.reader.get_or_try_init(open).await.map(Arc::clone)
    }

    /// Whether a block may hold a trace; it is not opened for that.
    pub(super) async fn may_hold(&self, store: &Store, meta: &Arc<Meta>, id: TraceId) -> Result<bool, BlockError> {
        let slot = self.slot(meta);
        slot.filters.may_hold(store, id).await
    }

    /// Forgets blocks that are not on the list, if any have left it since this was asked last.
    pub(super) fn close_unlisted(&self, list: &Blocklist) {
        let mut entries = self.entries.lock();
        let departures = list.departures();
        if entries.departures == departures {
            return;
        }
        entries.departures = departures;
        let Entries { slots, bytes, .. } = &mut *entries;
        let tenants: HashSet<Tenant> = slots.keys().map(|(tenant, _)| tenant.clone()).collect();
        for tenant in tenants {
            let listed: HashSet<BlockId> = list.blocks(&tenant).iter().map(|meta| meta.block_id).collect();
            slots.retain(|(owner, block), entry| {
                let stays = *owner != tenant || listed.contains(block);
                if !stays {
                    *bytes -= entry.bytes;
                }
                stays
            });
        }
    }

    fn slot(&self, meta: &Arc<Meta>) -> Arc<Slot> {
        let mut entries = self.entries.lock();
        let Entries { slots, bytes, uses, .. } = &mut *entries;
        *uses += 1;
        let key = (meta.tenant_id.clone(), meta.block_id);
        if let Some(entry) = slots.get_mut(&key) {
            entry.last_use = *uses;
            return Arc::clone(&entry.slot);
        }
        let size = footer_bytes(meta);
        while !slots.is_empty() && (slots.len() >= self.max_blocks || *bytes + size > self.max_bytes) {
            let oldest = slots.iter().min_by_key(|(_, entry)| entry.last_use).map(|(key, _)| key.clone());
            if let Some(entry) = oldest.and_then(|key| slots.remove(&key)) {
                *bytes -= entry.bytes;
            }
        }
        let slot = Arc::new(Slot { filters: Arc::new(Filters::new(Arc::clone(meta))), reader: OnceCell::new() });
        *bytes += size;
        slots.insert(key, Entry { slot: Arc::clone(&slot), bytes: size, last_use: *uses });
        slot
    }
}

/// What an opened block costs: its footer, and a little for the structures around it.
fn footer_bytes(meta: &Meta) -> u64 {
    u64::from(meta.footer_size) + 4096
}

#[cfg(test)]
mod tests {
    use storage::block::Settings;

    use super::*;

    fn meta(number: u128) -> Meta {
        let json = format!(
            r#"{{"format":"{}","blockID":"{}","tenantID":"a","footerSize":10}}"#,
            Settings::default().version,
            BlockId::from_u128(number)
        );
        Meta::from_json(json.as_bytes()).expect("meta")
    }

    #[test]
    fn blocks_that_leave_the_list_leave_the_cache() {
        let (list, open) = (Blocklist::new(), OpenBlocks::new(10, 1 << 20));
        let tenant = Tenant::new("a").expect("tenant");
        let held = |open: &OpenBlocks| {
            let entries = open.entries.lock();
            (entries.slots.len(), entries.bytes)
        };
        for number in 0..3 {
            list.add(meta(number));
            open.slot(&Arc::new(meta(number)));
        }
        open.close_unlisted(&list);
        assert_eq!(held(&open), (3, 3 * 4106));
        list.replace(&tenant, &[BlockId::from_u128(0), BlockId::from_u128(1)], vec![meta(9)], 1);
        assert_eq!(held(&open), (3, 3 * 4106));
        open.close_unlisted(&list);
        assert_eq!(held(&open), (1, 4106));
        list.remove(&tenant, &[BlockId::from_u128(2)]);
        open.close_unlisted(&list);
        assert_eq!(held(&open), (0, 0));
    }
}
