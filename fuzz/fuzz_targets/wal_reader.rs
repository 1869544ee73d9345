//! Whatever happens to a file of the log: opening mends it, reading ends at the head, and a second start finds nothing left to mend.
#![no_main]

use std::{
    path::Path,
    sync::{Arc, LazyLock},
    time::Duration,
};

use libfuzzer_sys::fuzz_target;
use storage::{
    clock::ManualClock,
    id::Tenant,
    wal::{Position, Settings, Sync, Wal},
};

// The input is a list of changes to a genuine file, four bytes each: what to do, where (two bytes), with which byte.
fuzz_target!(|changes: &[u8]| {
    static GENUINE: LazyLock<Vec<u8>> = LazyLock::new(genuine);
    let mut file = GENUINE.clone();
    for change in changes.as_chunks::<4>().0 {
        let at = usize::from(u16::from_le_bytes([change[1], change[2]])) % (file.len() + 1);
        match change[0] % 8 {
            0 => file.truncate(at),
            1 => file.insert(at, change[3]),
            _ => {
                if let Some(byte) = file.get_mut(at) {
                    *byte = change[3];
                }
            }
        }
    }
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::write(dir.path().join("id"), uuid::Uuid::nil().to_string()).expect("written");
    std::fs::write(dir.path().join(NAME), file).expect("written");
    // Refused with an error when the header names another log or version.
    let Some((head, records)) = read_all(dir.path()) else { return };
    assert!(records <= RECORDS);
    assert_eq!(read_all(dir.path()), Some((head, records)));
});

const NAME: &str = "00000000000000000000.wal";
const RECORDS: usize = 6;

fn genuine() -> Vec<u8> {
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::write(dir.path().join("id"), uuid::Uuid::nil().to_string()).expect("written");
    let (wal, _) = open_unlocked(settings(dir.path())).expect("opens");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        for number in 0..RECORDS {
            wal.append(&Tenant::single(), vec![number as u8; number * 50].into()).await.expect("appended");
        }
        wal.close().await;
    });
    std::fs::read(dir.path().join(NAME)).expect("one file")
}

fn settings(dir: &Path) -> Settings {
    Settings { dir: dir.to_owned(), file_bytes: 1 << 20, sync: Sync::Never, max_bytes: 1 << 20, queue_bytes: 1 << 20 }
}

fn read_all(dir: &Path) -> Option<(Position, usize)> {
    let (wal, _) = open_unlocked(settings(dir))?;
    let mut reader = wal.reader(Position(0)).expect("a reader");
    let mut records = Vec::new();
    reader.read(usize::MAX, &mut records).expect("readable");
    let head = *wal.head().borrow();
    assert_eq!(reader.position(), head);
    Some((head, records.len()))
}

/// The writer of the log opened before lets go of the folder a moment after its last handle is gone.
fn open_unlocked(settings: Settings) -> Option<(Wal, storage::wal::Recovery)> {
    let clock = Arc::new(ManualClock::new(Duration::ZERO));
    loop {
        match Wal::open(settings.clone(), Arc::<ManualClock>::clone(&clock), &prometheus::Registry::new()) {
            Ok(opened) => return Some(opened),
            Err(error) if error.source.kind() == std::io::ErrorKind::ResourceBusy => std::thread::yield_now(),
            Err(_) => return None,
        }
    }
}
