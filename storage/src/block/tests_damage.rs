//! Damaged blocks of Tempo, of all versions: an error that says so, or what is left; never a panic.

use std::path::PathBuf;

use object_store::{ObjectStore, ObjectStoreExt as _, memory::InMemory, path::Path};
use proptest::prelude::*;

use super::*;
use crate::backend::Store;

/// What happens to a file.
#[derive(Clone, Debug)]
enum Damage {
    /// Bits are flipped.
    Bits(Vec<prop::sample::Index>),
    /// Bits of the last bytes are flipped: footer and indexes.
    LastBits(Vec<prop::sample::Index>),
    /// A byte of page headers gets another value: pages begin where the footer says.
    Header(prop::sample::Index, u8),
    /// The end is missing; whether the meta knows that.
    Cut(prop::sample::Index, bool),
    /// A stretch is overwritten.
    Fill(prop::sample::Index, usize, u8),
    /// The meta says other lengths.
    Meta(u64, u32),
}

fn damage() -> impl Strategy<Value = Damage> {
    use prop::collection::vec;
    let at = any::<prop::sample::Index>;
    prop_oneof![
        vec(at(), 1..4).prop_map(Damage::Bits),
        vec(at(), 1..4).prop_map(Damage::LastBits),
        (at(), any::<u8>()).prop_map(|(at, byte)| Damage::Header(at, byte)),
        (at(), any::<bool>()).prop_map(|(at, known)| Damage::Cut(at, known)),
        (at(), 1usize..5000, any::<u8>()).prop_map(|(at, length, byte)| Damage::Fill(at, length, byte)),
        (any::<u64>(), any::<u32>()).prop_map(|(size, footer)| Damage::Meta(size, footer)),
    ]
}

fn apply(damage: &Damage, data: &mut Vec<u8>, meta: &mut Meta) {
    let flip = |data: &mut [u8], at: &prop::sample::Index| {
        let bit = at.index(data.len() * 8);
        data[bit / 8] ^= 1 << (bit % 8);
    };
    match damage {
        Damage::Bits(bits) => bits.iter().for_each(|at| flip(data, at)),
        Damage::LastBits(bits) => {
            let start = data.len().saturating_sub(20_000);
            bits.iter().for_each(|at| flip(&mut data[start..], at));
        }
        Damage::Header(at, byte) => {
            let file = parquet::file::serialized_reader::SerializedFileReader::new(Bytes::from(data.clone())).expect("file");
            let metadata = parquet::file::reader::FileReader::metadata(&file);
            let group = metadata.row_group(at.index(metadata.num_row_groups()));
            let chunk = group.column(at.index(group.num_columns()));
            let (start, _) = chunk.byte_range();
            data[start as usize + usize::from(*byte) % 40] = *byte ^ 0x55;
        }
        Damage::Cut(at, known) => {
            data.truncate(at.index(data.len()));
            if *known {
                meta.size = data.len() as u64;
            }
        }
        Damage::Fill(at, length, byte) => {
            let start = at.index(data.len());
            let end = (start + length).min(data.len());
            data[start..end].fill(*byte);
        }
        Damage::Meta(size, footer) => (meta.size, meta.footer_size) = (*size, *footer),
    }
}

/// Asks everything of a block. Errors have names; the decoder's panics would be among them.
async fn ask(data: Vec<u8>, meta: Meta) -> Vec<BlockError> {
    let objects = Arc::new(InMemory::new());
    let path = Path::from(format!("{}/{}/data.parquet", meta.tenant_id, meta.block_id));
    objects.put(&path, data.into()).await.expect("put");
    let store = Store::new(objects as Arc<dyn ObjectStore>, "");
    let reader = match Reader::open(&store, Arc::new(meta)).await {
        Ok(reader) => reader,
        Err(error) => return vec![error],
    };
    let mut errors = Vec::new();
    let mut ids = vec![TraceId([0; 16]), TraceId([0xff; 16])];
    for row_group in 0..reader.row_groups().min(3) {
        match reader.scan(row_group, Projection::ALL).await {
            Ok(traces) => ids.extend(traces.iter().step_by(9).map(|trace| trace.trace_id)),
            Err(error) => errors.push(error),
        }
        match reader.pages(row_group, &[0, 1, 11, 47]).await {
            Ok(mut pages) => errors.extend(reader.columns_of(&mut pages, 1..2).await.err()),
            Err(error) => errors.push(error),
        }
    }
    for id in ids {
        errors.extend(reader.look_up(id).await.err());
    }
    errors.extend(reader.span_keys().await.err());
    errors
}

fn small_blocks() -> Option<Vec<PathBuf>> {
    let mut folders = Vec::new();
    for format in Format::ALL {
        let found = fixtures::blocks(format.name())?;
        folders.extend(found.into_iter().filter(|folder| folder.join("meta.compacted.json").exists()));
    }
    Some(folders)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn damaged_blocks_of_tempo_are_errors_and_never_panics(block in any::<prop::sample::Index>(), damage in damage()) {
        let Some(folders) = small_blocks() else { return Ok(()) };
        let folder = block.get(&folders);
        let mut meta = Meta::from_json(&std::fs::read(folder.join("meta.compacted.json")).expect("meta")).expect("meta");
        let mut data = std::fs::read(folder.join("data.parquet")).expect("data");
        apply(&damage, &mut data, &mut meta);
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
        for error in runtime.block_on(ask(data, meta)) {
            let text = chain(&error);
            prop_assert!(!text.contains("panicked"), "{}", text);
            prop_assert!(matches!(error, BlockError::Corrupt { .. } | BlockError::Store { .. }), "{}", text);
        }
    }
}

#[tokio::test]
async fn whole_blocks_of_tempo_have_no_errors() {
    let Some(folders) = small_blocks() else { return };
    assert_eq!(folders.len(), 8);
    for folder in folders {
        let meta = Meta::from_json(&std::fs::read(folder.join("meta.compacted.json")).expect("meta")).expect("meta");
        let errors = ask(std::fs::read(folder.join("data.parquet")).expect("data"), meta).await;
        assert!(errors.is_empty(), "{errors:?}");
    }
}

/// A file whose end is missing is as wrong tomorrow: a bucket that has nothing where the footer should be has not failed.
#[tokio::test]
async fn a_file_without_its_end_is_corrupt() {
    let requests = crate::synthetic::requests(3, 20);
    let encoded = encode(&Settings::default(), &Tenant::single(), BlockId::nil(), &tests::synthetic(&requests)).expect("encode");
    let meta = Arc::new(encoded.meta.clone());
    let folder = tempfile::tempdir().expect("a folder");
    let local = object_store::local::LocalFileSystem::new_with_prefix(folder.path()).expect("a folder");
    for objects in [Arc::new(InMemory::new()) as Arc<dyn ObjectStore>, Arc::new(local)] {
        let store = Store::new(objects, "");
        for length in [0, 1, encoded.data.len() / 2, encoded.data.len() - 1] {
            let data = encoded.data.slice(..length);
            store.put_named(&meta.tenant_id, meta.block_id, DATA, data).await.expect("put");
            let error = Reader::open(&store, Arc::clone(&meta)).await.expect_err("its end is missing");
            assert!(matches!(&error, BlockError::Corrupt { what, .. } if what.contains("shorter")), "{length} bytes: {error}");
        }
        let nothing = Arc::new(Meta { block_id: BlockId::from_u128(1), ..Meta::clone(&meta) });
        let error = Reader::open(&store, nothing).await.expect_err("it is not there");
        assert!(matches!(&error, BlockError::Store { source, .. } if source.is_not_found()), "{error}");
    }
}
