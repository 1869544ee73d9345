//! The log against a list, on a disk that tears, lies and fills up.

use std::{collections::BTreeSet, fs, io::IoSlice, sync::atomic::AtomicUsize};

use parking_lot::MutexGuard;
use prometheus::Registry;
use proptest::{collection::vec, prelude::*};
use tempfile::TempDir;

use super::{
    disk::{DiskFile, Real},
    format::FILE_HEADER_BYTES,
    *,
};
use crate::clock::ManualClock;

/// What the disk is to do wrong.
#[derive(Clone, Debug, Default)]
struct Faults {
    /// Bytes until it is full.
    room: Option<u64>,
    /// Most bytes that one write takes.
    max_write: Option<usize>,
    failing_syncs: usize,
    failing_truncates: bool,
}

#[derive(Clone, Debug, Default)]
struct FaultyDisk(Arc<Mutex<Faults>>);

impl FaultyDisk {
    fn faults(&self) -> MutexGuard<'_, Faults> {
        self.0.lock()
    }

    fn recover(&self) {
        *self.faults() = Faults::default();
    }
}

impl Disk for FaultyDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(FaultyFile { file: Real.create(path)?, disk: self.clone() }))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        Real.sync_dir(dir)
    }
}

#[derive(Debug)]
struct FaultyFile {
    file: Box<dyn DiskFile>,
    disk: FaultyDisk,
}

impl DiskFile for FaultyFile {
    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut faults = self.disk.faults();
        let most = faults.room.unwrap_or(u64::MAX).min(faults.max_write.unwrap_or(usize::MAX) as u64) as usize;
        if faults.room == Some(0) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let written = if slices.iter().map(|slice| slice.len()).sum::<usize>() <= most {
            self.file.write_vectored(slices)?
        } else {
            let first = slices.iter().find(|slice| !slice.is_empty()).expect("something to write");
            self.file.write_vectored(&[IoSlice::new(&first[..first.len().min(most)])])?
        };
        if let Some(room) = &mut faults.room {
            *room -= written as u64;
        }
        Ok(written)
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut faults = self.disk.faults();
        if faults.failing_syncs > 0 {
            faults.failing_syncs -= 1;
            return Err(io::Error::other("the disk is on fire"));
        }
        drop(faults);
        self.file.sync()
    }

    fn truncate(&mut self, bytes: u64) -> io::Result<()> {
        if self.disk.faults().failing_truncates {
            return Err(io::Error::other("the disk is on fire"));
        }
        self.file.truncate(bytes)
    }
}

fn settings(dir: &Path) -> Settings {
    Settings { dir: dir.to_owned(), file_bytes: 4096, sync: Sync::Always, max_bytes: 1 << 30, queue_bytes: 1 << 20 }
}

fn clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::new(Duration::from_secs(1000)))
}

fn try_open(settings: Settings) -> Result<(Wal, Recovery), WalError> {
    Wal::open(settings, clock(), &Registry::new())
}

fn open(dir: &Path) -> (Wal, Recovery) {
    try_open(settings(dir)).expect("opens")
}

fn open_faulty(settings: Settings) -> (Wal, FaultyDisk) {
    let disk = FaultyDisk::default();
    let (wal, _) = Wal::open_on(Box::new(disk.clone()), settings, clock(), &Registry::new()).expect("opens");
    (wal, disk)
}

fn body(number: usize, bytes: usize) -> Bytes {
    (0..bytes).map(|at| (number * 31 + at * 7 + at / 251) as u8).collect()
}

fn read_from(wal: &Wal, from: Position) -> Vec<Record> {
    let mut reader = wal.reader(from).expect("a reader");
    let mut records = Vec::new();
    loop {
        let before = records.len();
        reader.read(1000, &mut records).expect("readable");
        if records.len() == before {
            assert_eq!(reader.position(), *wal.head().borrow());
            return records;
        }
    }
}

fn bodies(records: &[Record]) -> Vec<Bytes> {
    records.iter().map(|record| record.body.clone()).collect()
}

fn wal_files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(dir)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "wal"))
        .collect();
    files.sort();
    files
}

/// Appends bodies of these lengths and closes the log.
async fn prepare(dir: &Path, lengths: &[usize]) -> Vec<Position> {
    let (wal, _) = try_open(Settings { file_bytes: 1 << 20, ..settings(dir) }).expect("opens");
    let mut positions = Vec::new();
    for (number, length) in lengths.iter().enumerate() {
        positions.push(wal.append(&Tenant::single(), body(number, *length)).await.expect("appended"));
    }
    positions.push(*wal.head().borrow());
    wal.close().await;
    positions
}

/// A copy of a log of one file whose bytes are changed.
fn damaged_copy(dir: &Path, change: impl FnOnce(&mut Vec<u8>)) -> TempDir {
    let copy = TempDir::new().expect("a folder");
    let file = &wal_files(dir)[0];
    let mut bytes = fs::read(file).expect("readable");
    change(&mut bytes);
    fs::write(copy.path().join(file.file_name().expect("a name")), bytes).expect("writable");
    fs::copy(dir.join("id"), copy.path().join("id")).expect("copied");
    copy
}

#[tokio::test]
async fn records_come_back_in_order_over_many_files() {
    let dir = TempDir::new().expect("a folder");
    let clock = clock();
    let (wal, recovery) = Wal::open(settings(dir.path()), Arc::clone(&clock) as _, &Registry::new()).expect("opens");
    assert_eq!(recovery, Recovery::default());
    let tenants = [Tenant::single(), Tenant::new("b").expect("valid")];
    let mut reader = wal.reader(Position(0)).expect("a reader");
    let (mut sent, mut received) = (Vec::new(), Vec::new());
    for number in 0..300 {
        let (tenant, body) = (&tenants[number % 3 % 2], body(number, number * 37 % 3000));
        clock.advance(Duration::from_millis(3));
        let entry = Entry { body, skip_metrics_generation: number % 5 == 0 };
        let position = wal.append(tenant, entry.clone()).await.expect("appended");
        sent.push((position, clock.now(), tenant.clone(), entry));
        if number % 7 == 0 {
            reader.read(usize::MAX, &mut received).expect("readable");
            assert_eq!(received.len(), sent.len());
        }
    }
    reader.read(usize::MAX, &mut received).expect("readable");
    for records in [received, read_from(&wal, Position(0))] {
        let entry = |record: &Record| Entry { body: record.body.clone(), skip_metrics_generation: record.skip_metrics_generation };
        let found: Vec<_> = records.iter().map(|record| (record.position, record.at, record.tenant.clone(), entry(record))).collect();
        assert_eq!(found, sent);
        assert!(records.windows(2).all(|pair| pair[0].next == pair[1].position));
    }
    assert!(wal_files(dir.path()).len() > 50);
    let middle = sent[150].0;
    assert_eq!(read_from(&wal, middle).len(), 150);
    assert!(wal.reader(Position(wal.head().borrow().0 + 1)).is_err());
}

#[tokio::test]
async fn a_body_larger_than_the_read_window_comes_back() {
    let dir = TempDir::new().expect("a folder");
    let lengths = [10, 3 << 20, 900_000, 900_000, 0];
    prepare(dir.path(), &lengths).await;
    let (wal, _) = open(dir.path());
    let records = read_from(&wal, Position(0));
    assert_eq!(bodies(&records), lengths.iter().enumerate().map(|(number, length)| body(number, *length)).collect::<Vec<_>>());
    let too_large = wal.append(&Tenant::single(), Bytes::from(vec![0; MAX_RECORD_BYTES])).await;
    assert!(matches!(too_large, Err(AppendError::TooLarge { .. })), "{too_large:?}");
}

#[tokio::test]
async fn a_torn_tail_is_cut_wherever_it_tore() {
    let dir = TempDir::new().expect("a folder");
    let positions = prepare(dir.path(), &[100, 0, 90]).await;
    let [_, _, last, end] = positions[..] else { panic!("four positions") };
    for kept in last.0..end.0 {
        let copy = damaged_copy(dir.path(), |bytes| bytes.truncate(kept as usize + FILE_HEADER_BYTES));
        let (wal, recovery) = open(copy.path());
        assert_eq!(recovery, Recovery { torn_bytes: kept - last.0, ..Recovery::default() });
        assert_eq!(*wal.head().borrow(), last);
        assert_eq!(wal.append(&Tenant::single(), body(9, 50)).await, Ok(last));
        assert_eq!(bodies(&read_from(&wal, Position(0))), [body(0, 100), body(1, 0), body(9, 50)]);
        wal.close().await;
        assert_eq!(open(copy.path()).1, Recovery::default());
    }
}

#[tokio::test]
async fn a_torn_tail_that_was_overwritten_with_noise_is_cut() {
    let dir = TempDir::new().expect("a folder");
    let positions = prepare(dir.path(), &[100, 0, 90]).await;
    for at in positions[2].0..positions[3].0 {
        let copy = damaged_copy(dir.path(), |bytes| bytes[at as usize + FILE_HEADER_BYTES] ^= 0x10);
        let (wal, recovery) = open(copy.path());
        assert_eq!(recovery.torn_bytes, positions[3].0 - positions[2].0);
        assert_eq!(bodies(&read_from(&wal, Position(0))), [body(0, 100), body(1, 0)]);
    }
}

/// Found by fuzzing: the first start kept the damaged record and cut the noise, the second cut the record, and the head went back.
#[tokio::test]
async fn damage_that_reaches_the_tail_is_cut_at_once() {
    let dir = TempDir::new().expect("a folder");
    let positions = prepare(dir.path(), &[100, 0, 90]).await;
    let copy = damaged_copy(dir.path(), |bytes| {
        bytes[positions[2].0 as usize + FILE_HEADER_BYTES + 60] ^= 0x10;
        bytes.push(4);
    });
    let (wal, recovery) = open(copy.path());
    assert_eq!(recovery.torn_bytes, positions[3].0 + 1 - positions[2].0);
    assert_eq!(*wal.head().borrow(), positions[2]);
    wal.close().await;
    let (wal, recovery) = open(copy.path());
    assert_eq!((*wal.head().borrow(), recovery), (positions[2], Recovery::default()));
}

#[tokio::test]
async fn damage_in_the_middle_is_quarantined_and_the_rest_kept() {
    let dir = TempDir::new().expect("a folder");
    let positions = prepare(dir.path(), &[100, 80, 0, 90]).await;
    for at in positions[1].0..positions[2].0 {
        for bit in [0, 7] {
            let copy = damaged_copy(dir.path(), |bytes| bytes[at as usize + FILE_HEADER_BYTES] ^= 1 << bit);
            let (wal, recovery) = open(copy.path());
            let bytes = positions[2].0 - positions[1].0;
            assert_eq!(recovery, Recovery { torn_bytes: 0, quarantined_records: 1, quarantined_bytes: bytes }, "byte {at}");
            assert_eq!(bodies(&read_from(&wal, Position(0))), [body(0, 100), body(2, 0), body(3, 90)]);
            let quarantined = copy.path().join("quarantine").join(format!("{:020}-{bytes}.bin", positions[1].0));
            let begin = positions[1].0 as usize + FILE_HEADER_BYTES;
            let damaged = fs::read(&wal_files(copy.path())[0]).expect("readable")[begin..][..bytes as usize].to_vec();
            assert_eq!(fs::read(quarantined).expect("a copy"), damaged);
            wal.append(&Tenant::single(), body(4, 7)).await.expect("appended");
            wal.close().await;
            let (wal, recovery) = open(copy.path());
            assert_eq!(recovery, Recovery::default());
            assert_eq!(read_from(&wal, Position(0)).len(), 4);
        }
    }
}

#[tokio::test]
async fn a_damaged_file_header_costs_no_record() {
    let dir = TempDir::new().expect("a folder");
    prepare(dir.path(), &[100, 80]).await;
    for at in 0..FILE_HEADER_BYTES {
        let copy = damaged_copy(dir.path(), |bytes| bytes[at] ^= 1);
        assert_eq!(read_from(&open(copy.path()).0, Position(0)).len(), 2);
    }
}

#[tokio::test]
async fn damage_under_a_running_reader_is_skipped_and_counted() {
    let dir = TempDir::new().expect("a folder");
    let registry = Registry::new();
    let (wal, _) = Wal::open(settings(dir.path()), clock(), &registry).expect("opens");
    let mut positions = Vec::new();
    for number in 0..20 {
        positions.push(wal.append(&Tenant::single(), body(number, 500)).await.expect("appended"));
    }
    // The first record of the second file: header and body.
    let file = &wal_files(dir.path())[1];
    let mut bytes = fs::read(file).expect("readable");
    bytes[FILE_HEADER_BYTES..][..200].fill(0x55);
    fs::write(file, bytes).expect("writable");
    let start = files::start_of(file.file_name().and_then(|name| name.to_str()).expect("a name")).expect("a file of the log");
    let records = read_from(&wal, Position(0));
    assert_eq!(records.len(), 19);
    assert!(records.iter().all(|record| record.position != start));
    assert_eq!(wal.handle.shared.metrics.corrupt_records.get(), 1);
}

#[tokio::test]
async fn a_record_inside_a_body_is_not_taken_for_one() {
    let dir = TempDir::new().expect("a folder");
    let id = uuid::Uuid::from_u128(1);
    // The client guesses everything but the log's identity: position, checksums, tenant.
    let forged = |seed: Seed, position: Position| {
        let mut record = Vec::new();
        let victim = Tenant::new("victim").expect("valid");
        format::write_record_header(seed, position, 0, &victim, &Bytes::from_static(b"evil").into(), seed.checksum(b"evil"), &mut record);
        record.extend(b"evil");
        Bytes::from(record)
    };
    let inside = Position(format::record_bytes(&Tenant::single(), &Bytes::new()) as u64);
    let (wal, _) = open(dir.path());
    wal.append(&Tenant::single(), forged(Seed::of(id), inside)).await.expect("appended");
    wal.append(&Tenant::single(), forged(wal.handle.shared.seed, Position(0))).await.expect("appended");
    wal.append(&Tenant::single(), body(2, 5)).await.expect("appended");
    wal.close().await;
    let copy = damaged_copy(dir.path(), |bytes| bytes[FILE_HEADER_BYTES + 8] ^= 1);
    let records = read_from(&open(copy.path()).0, Position(0));
    assert_eq!(records.len(), 2);
    assert!(records.iter().all(|record| record.tenant == Tenant::single()));
}

#[tokio::test]
async fn a_full_disk_refuses_and_recovers_by_itself() {
    for failing_truncates in [false, true] {
        let dir = TempDir::new().expect("a folder");
        let (wal, disk) = open_faulty(settings(dir.path()));
        let mut kept = Vec::new();
        for number in 0..60 {
            *disk.faults() = Faults {
                room: (number % 3 != 0).then_some(number as u64 * 11 % 400),
                max_write: (number % 2 == 0).then_some(7),
                failing_truncates,
                ..Faults::default()
            };
            let head = *wal.head().borrow();
            match wal.append(&Tenant::single(), body(number, 300)).await {
                Ok(position) => {
                    assert_eq!(position, head);
                    kept.push(body(number, 300));
                }
                Err(error) => {
                    assert!(matches!(error, AppendError::Full(_)), "{error}");
                    assert_eq!(*wal.head().borrow(), head);
                }
            }
        }
        assert!(kept.len() >= 20 && kept.len() < 40, "{} kept", kept.len());
        disk.recover();
        assert_eq!(bodies(&read_from(&wal, Position(0))), kept);
        wal.close().await;
        let (wal, recovery) = open(dir.path());
        assert_eq!(bodies(&read_from(&wal, Position(0))), kept);
        assert_eq!(recovery.quarantined_records, 0);
    }
}

#[tokio::test]
async fn a_full_log_refuses_until_something_is_released() {
    let dir = TempDir::new().expect("a folder");
    let (wal, _) = try_open(Settings { max_bytes: 10_000, file_bytes: 1000, ..settings(dir.path()) }).expect("opens");
    let mut appended = 0;
    let error = loop {
        match wal.append(&Tenant::single(), body(appended, 500)).await {
            Ok(_) => appended += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(&error, AppendError::Full(cause) if cause.contains("10000")), "{error}");
    assert!(wal_files(dir.path()).iter().map(|file| fs::metadata(file).expect("a file").len()).sum::<u64>() <= 10_000);
    assert!((14..20).contains(&appended));
    wal.release(*wal.head().borrow()).expect("released");
    wal.append(&Tenant::single(), body(appended, 500)).await.expect("room again");
}

#[tokio::test]
async fn a_failed_fsync_is_never_acknowledged_and_its_file_never_written_again() {
    for failing_truncates in [false, true] {
        let dir = TempDir::new().expect("a folder");
        let (wal, disk) = open_faulty(settings(dir.path()));
        let (mut kept, mut files) = (Vec::new(), 0);
        for number in 0..40 {
            let fails = number % 5 == 3;
            // A new file is synced once for its header.
            *disk.faults() = Faults { failing_syncs: usize::from(fails), failing_truncates, ..Faults::default() };
            if fails {
                files = wal_files(dir.path()).len();
            }
            match wal.append(&Tenant::single(), body(number, 200)).await {
                Ok(_) if !fails => kept.push(body(number, 200)),
                Err(AppendError::Io(cause)) if fails => assert!(cause.contains("on fire")),
                other => panic!("{number}: {other:?}"),
            }
            if number % 5 == 4 {
                assert!(wal_files(dir.path()).len() > files, "a new file after the failure");
            }
        }
        assert_eq!(wal.handle.shared.metrics.fsync_failures.get(), 8);
        disk.recover();
        assert_eq!(bodies(&read_from(&wal, Position(0))), kept);
        wal.close().await;
        assert_eq!(bodies(&read_from(&open(dir.path()).0, Position(0))), kept);
    }
}

#[tokio::test]
async fn positions_and_times_grow_over_restarts() {
    let dir = TempDir::new().expect("a folder");
    let mut positions = Vec::new();
    let mut id = None;
    for round in 0..10u64 {
        // The clock goes backwards.
        let clock = Arc::new(ManualClock::new(Duration::from_secs(1000 - round)));
        let (wal, _) = Wal::open(settings(dir.path()), clock, &Registry::new()).expect("opens");
        assert_eq!(*id.get_or_insert(wal.id()), wal.id());
        for number in 0..round {
            positions.push(wal.append(&Tenant::single(), body(number as usize, 400)).await.expect("appended"));
        }
        let records = read_from(&wal, Position(0));
        assert_eq!(records.iter().map(|record| record.position).collect::<Vec<_>>(), positions);
        assert!(records.windows(2).all(|pair| pair[0].position < pair[1].position && pair[0].at <= pair[1].at));
        wal.close().await;
    }
}

#[tokio::test]
async fn advancing_leaves_a_gap_that_readers_cross() {
    let dir = TempDir::new().expect("a folder");
    let (wal, _) = open(dir.path());
    wal.append(&Tenant::single(), body(0, 10)).await.expect("appended");
    let mut reader = wal.reader(Position(0)).expect("a reader");
    let mut records = Vec::new();
    wal.advance_to(Position(1_000_000)).await.expect("advanced");
    assert_eq!(*wal.head().borrow(), Position(1_000_000));
    reader.read(usize::MAX, &mut records).expect("readable");
    assert_eq!((records.len(), reader.position()), (1, Position(1_000_000)));
    wal.advance_to(Position(5)).await.expect("nothing to do");
    wal.close().await;
    let (wal, _) = open(dir.path());
    assert_eq!(wal.append(&Tenant::single(), body(1, 10)).await, Ok(Position(1_000_000)));
    assert_eq!(read_from(&wal, Position(0)).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_appends_are_each_acknowledged_once_and_in_order() {
    let dir = TempDir::new().expect("a folder");
    let (wal, _) = try_open(Settings { queue_bytes: 5000, file_bytes: 50_000, ..settings(dir.path()) }).expect("opens");
    let acknowledged = Arc::new(AtomicUsize::new(0));
    let tasks: Vec<_> = (0..32)
        .map(|task| {
            let (wal, acknowledged) = (wal.clone(), Arc::clone(&acknowledged));
            tokio::spawn(async move {
                let mut appended = Vec::new();
                for number in 0..25 {
                    let body = Bytes::from(format!("{task}/{number}/{}", "x".repeat((task * 97 + number * 13) % 6000)));
                    let position = wal.append(&Tenant::single(), body.clone()).await.expect("appended");
                    acknowledged.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    assert!(*wal.head().borrow() > position, "acknowledged before it was durable");
                    appended.push((position, body));
                }
                appended
            })
        })
        .collect();
    let mut appended = Vec::new();
    for task in tasks {
        let of_task = task.await.expect("no panic");
        assert!(of_task.windows(2).all(|pair| pair[0].0 < pair[1].0));
        appended.extend(of_task);
    }
    appended.sort();
    let read: Vec<_> = read_from(&wal, Position(0)).into_iter().map(|record| (record.position, record.body)).collect();
    assert_eq!(read, appended);
    assert_eq!(wal.handle.shared.metrics.queue_bytes.get(), 0);
    assert_eq!(appended.iter().map(|(_, body)| body.clone()).collect::<BTreeSet<_>>().len(), 32 * 25);
}

#[tokio::test]
async fn released_files_go_and_readers_pass_over_them() {
    let dir = TempDir::new().expect("a folder");
    let (wal, _) = open(dir.path());
    let mut positions = Vec::new();
    for number in 0..100 {
        positions.push(wal.append(&Tenant::single(), body(number, 400)).await.expect("appended"));
    }
    let mut behind = wal.reader(Position(0)).expect("a reader");
    let mut records = Vec::new();
    behind.read(1, &mut records).expect("readable");
    let files = wal_files(dir.path()).len();
    wal.release(positions[60]).expect("released");
    assert!(wal_files(dir.path()).len() < files - 4);
    assert!(wal.tail() <= positions[60] && wal.tail() > positions[40]);
    behind.read(usize::MAX, &mut records).expect("readable");
    assert!(records[1..].iter().map(|record| record.position).is_sorted());
    assert_eq!(records.last().map(|record| record.position), positions.last().copied());
    wal.release(*wal.head().borrow()).expect("released");
    assert_eq!(wal_files(dir.path()).len(), 1);
    wal.close().await;
    let (wal, _) = open(dir.path());
    assert!(wal.append(&Tenant::single(), body(0, 1)).await.expect("appended") > positions[99]);
}

#[tokio::test]
async fn closing_drains_the_queue_and_refuses_what_comes_later() {
    let dir = TempDir::new().expect("a folder");
    let (wal, _) = open(dir.path());
    let appends = futures::future::join_all((0..50).map(|number| {
        let wal = wal.clone();
        async move { wal.append(&Tenant::single(), body(number, 100)).await }
    }));
    let (results, ()) = tokio::join!(appends, wal.close());
    let acknowledged = results.iter().filter(|result| result.is_ok()).count();
    assert!(results.iter().all(|result| matches!(result, Ok(_) | Err(AppendError::Closed))));
    assert_eq!(wal.append(&Tenant::single(), Bytes::new()).await, Err(AppendError::Closed));
    assert_eq!(wal.advance_to(Position(1 << 40)).await, Err(AppendError::Closed));
    // Readers outlive it.
    assert_eq!(read_from(&wal, Position(0)).len(), acknowledged);
    let (reopened, _) = open(dir.path());
    assert_eq!(read_from(&reopened, Position(0)).len(), acknowledged);
}

#[tokio::test]
async fn two_logs_cannot_share_a_folder() {
    let dir = TempDir::new().expect("a folder");
    let (_wal, _) = open(dir.path());
    let error = try_open(settings(dir.path())).expect_err("locked");
    assert_eq!(error.source.to_string(), "another process has this log open");
}

#[tokio::test]
async fn files_of_another_log_are_refused() {
    let (dir, other) = (TempDir::new().expect("a folder"), TempDir::new().expect("a folder"));
    prepare(dir.path(), &[10]).await;
    prepare(other.path(), &[10]).await;
    fs::copy(other.path().join("id"), dir.path().join("id")).expect("copied");
    let error = try_open(settings(dir.path())).expect_err("refused");
    assert!(error.source.to_string().contains("belongs to the log"), "{error:?}");
    // Without an identity the files tell it.
    fs::remove_file(dir.path().join("id")).expect("removed");
    assert_eq!(read_from(&open(dir.path()).0, Position(0)).len(), 1);
    fs::write(dir.path().join("id"), "not a uuid").expect("written");
    assert!(try_open(settings(dir.path())).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interval_syncs_behind_the_acknowledgement() {
    let dir = TempDir::new().expect("a folder");
    let interval = Duration::from_millis(20);
    let (wal, disk) = open_faulty(Settings { sync: Sync::Interval(interval), ..settings(dir.path()) });
    wal.append(&Tenant::single(), body(0, 10)).await.expect("appended");
    let fsyncs = || wal.handle.shared.metrics.fsync_seconds.get_sample_count();
    let synced = async {
        while fsyncs() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), synced).await.expect("synced in time");
    tokio::time::sleep(3 * interval).await;
    assert_eq!(fsyncs(), 1, "nothing new to sync");
    disk.faults().failing_syncs = 1;
    wal.append(&Tenant::single(), body(1, 10)).await.expect("acknowledged before the sync");
    wal.close().await;
    assert_eq!(wal.handle.shared.metrics.fsync_failures.get(), 1);
}

#[tokio::test]
async fn a_log_that_is_never_synced_is_not_synced() {
    let dir = TempDir::new().expect("a folder");
    let (wal, disk) = open_faulty(Settings { sync: Sync::Never, ..settings(dir.path()) });
    disk.faults().failing_syncs = usize::MAX;
    for number in 0..50 {
        wal.append(&Tenant::single(), body(number, 500)).await.expect("appended");
    }
    wal.close().await;
    assert_eq!(read_from(&open(dir.path()).0, Position(0)).len(), 50);
}

#[derive(Clone, Debug)]
enum Action {
    Append(usize),
    Group(Vec<usize>),
    Reopen,
    Tear(usize),
    Release(usize),
    Break(Faults),
    Mend,
}

fn action() -> impl Strategy<Value = Action> {
    let faults = (proptest::option::of(0u64..3000), proptest::option::of(1usize..50), 0usize..2, any::<bool>())
        .prop_map(|(room, max_write, failing_syncs, failing_truncates)| Faults { room, max_write, failing_syncs, failing_truncates });
    prop_oneof![
        6 => (0usize..2000).prop_map(Action::Append),
        3 => vec(0usize..1500, 1..6).prop_map(Action::Group),
        2 => Just(Action::Reopen),
        1 => (1usize..300).prop_map(Action::Tear),
        1 => (0usize..100).prop_map(Action::Release),
        1 => faults.prop_map(Action::Break),
        2 => Just(Action::Mend),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn the_log_is_a_list(actions in vec(action(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(the_log_agrees_with_a_list(actions));
    }
}

async fn the_log_agrees_with_a_list(actions: Vec<Action>) {
    let dir = TempDir::new().expect("a folder");
    let (mut wal, mut disk) = open_faulty(settings(dir.path()));
    let mut list: Vec<(Position, Bytes)> = Vec::new();
    for (number, action) in actions.into_iter().enumerate() {
        match action {
            Action::Append(length) => {
                if let Ok(position) = wal.append(&Tenant::single(), body(number, length)).await {
                    list.push((position, body(number, length)));
                }
            }
            Action::Group(lengths) => {
                let appends = lengths.into_iter().enumerate().map(|(at, length)| {
                    let (wal, body) = (wal.clone(), body(number * 10 + at, length));
                    async move { wal.append(&Tenant::single(), body.clone()).await.map(|position| (position, body)) }
                });
                list.extend(futures::future::join_all(appends).await.into_iter().flatten());
                list.sort();
            }
            Action::Reopen | Action::Tear(_) => {
                // Else a refused record may come back, as the module documentation says.
                disk.recover();
                wal.close().await;
                if let Action::Tear(bytes) = action
                    && let Some(last) = wal_files(dir.path()).last()
                {
                    // An append that the process died in.
                    let mut torn = fs::read(last).expect("readable");
                    if torn.len() >= FILE_HEADER_BYTES {
                        let mut record = Vec::new();
                        let seed = wal.handle.shared.seed;
                        format::write_record_header(
                            seed,
                            *wal.head().borrow(),
                            0,
                            &Tenant::single(),
                            &Bytes::from(vec![0; 300]).into(),
                            0,
                            &mut record,
                        );
                        record.extend(body(number, 300));
                        torn.extend(&record[..bytes.min(record.len() - 1)]);
                        fs::write(last, torn).expect("writable");
                    }
                }
                let head = *wal.head().borrow();
                (wal, disk) = open_faulty(settings(dir.path()));
                assert_eq!(*wal.head().borrow(), head);
            }
            Action::Release(percent) => {
                let held = list.get(list.len() * percent / 100).map_or(*wal.head().borrow(), |(position, _)| *position);
                wal.release(held).expect("released");
                assert!(wal.tail() <= held);
                list.retain(|(position, _)| *position >= wal.tail());
            }
            Action::Break(faults) => *disk.faults() = faults,
            Action::Mend => disk.recover(),
        }
        let read: Vec<_> = read_from(&wal, Position(0)).into_iter().map(|record| (record.position, record.body)).collect();
        assert_eq!(read, list);
    }
}
