//! A small dataflow that stands for the large one: it counts words that every member reads from its log, exchanges them by word, and
//! writes what it counted to manifests, from which the next generation begins.
//!
//! A member's log is a rule: its word at a position is known to everybody, so what any manifest should say can be counted again.

use std::{
    collections::BTreeMap,
    fs, io,
    io::Write,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use dataflow::cluster::{Cause, Ended, Formation, Options, execute};
use serde::{Deserialize, Serialize};
use timely::{
    container::CapacityContainerBuilder,
    dataflow::{
        InputHandleVec, ProbeHandle,
        channels::pact::Exchange,
        operators::{Probe, generic::operator::Operator, vec::Input},
    },
    worker::Worker,
};

/// Different words.
const WORDS: u64 = 64;
/// Words that a member reads in a tick.
const WORDS_PER_TICK: u64 = 200;
/// Every so many ticks there is a manifest.
const CHECKPOINT: u64 = 4;
/// Ticks that are read ahead of the slowest operator.
const WINDOW: u64 = 4;

/// The word at a position of a member's log.
fn word(member: &str, position: u64) -> u64 {
    let seed = member
        .bytes()
        .fold(position.wrapping_mul(0x9e37_79b9_7f4a_7c15), |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    (seed >> 29) % WORDS
}

/// What was counted, up to where in each member's log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) sequence: u64,
    pub(crate) epoch: u64,
    pub(crate) leader: String,
    pub(crate) positions: BTreeMap<String, u64>,
    pub(crate) counts: BTreeMap<u64, u64>,
}

impl Manifest {
    /// Panics if a word was lost or counted twice.
    pub(crate) fn verify(&self) {
        let mut truth = BTreeMap::<u64, u64>::new();
        for (member, end) in &self.positions {
            (0..*end).for_each(|position| *truth.entry(word(member, position)).or_default() += 1);
        }
        assert_eq!(self.counts, truth, "manifest {} of epoch {}", self.sequence, self.epoch);
    }
}

/// Manifests in a directory; a sequence number is written once.
#[derive(Clone, Debug)]
pub(crate) struct Manifests(PathBuf);

impl Manifests {
    pub(crate) fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }

    pub(crate) fn newest(&self) -> Manifest {
        let number = |entry: io::Result<fs::DirEntry>| entry.ok()?.file_name().to_str()?.strip_prefix("manifest-")?.parse::<u64>().ok();
        let newest = fs::read_dir(&self.0).expect("directory is there").filter_map(number).max();
        newest.map_or_else(Manifest::default, |sequence| {
            let json = fs::read(self.0.join(format!("manifest-{sequence}"))).expect("manifest is there");
            serde_json::from_slice(&json).expect("manifest is whole")
        })
    }

    /// False if somebody else has written this one.
    fn put(&self, manifest: &Manifest, writer: &str) -> bool {
        let temporary = self.0.join(format!("new-{writer}-{}", std::process::id()));
        let mut file = fs::File::create(&temporary).expect("file can be created");
        file.write_all(&serde_json::to_vec(manifest).expect("manifest is JSON")).expect("file can be written");
        let is_first = fs::hard_link(&temporary, self.0.join(format!("manifest-{}", manifest.sequence))).is_ok();
        fs::remove_file(&temporary).expect("file can be removed");
        is_first
    }
}

/// What tests do to a member.
#[derive(Clone, Debug, Default)]
pub(crate) struct Mischief {
    /// The next word makes an operator panic.
    pub(crate) panic: Arc<AtomicBool>,
    /// Workers do not return for so many milliseconds.
    pub(crate) sleep: Arc<AtomicU64>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum Record {
    Word(u64),
    /// Member's index, and how far it read.
    Position(usize, u64),
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Shard {
    counts: Vec<(u64, u64)>,
    positions: Vec<(usize, u64)>,
}

/// The manifest with which all members begin: the first writes the newest one again under the new epoch, after which nobody who began
/// before can commit, and the others wait for that.
fn begin(formation: &Formation, manifests: &Manifests) -> Result<Manifest, u64> {
    let (counter, leader) = (formation.epoch.counter, formation.epoch.leader.to_string());
    loop {
        let newest = manifests.newest();
        if formation.index != 0 && (newest.epoch, &newest.leader) == (counter, &leader) {
            return Ok(newest);
        }
        if newest.epoch >= counter {
            return Err(newest.epoch);
        }
        if formation.lost.is_set() {
            return Ok(newest);
        }
        if formation.index == 0 {
            let own = &formation.members[0].id;
            let claim = Manifest { sequence: newest.sequence + 1, epoch: counter, leader: leader.clone(), ..newest };
            if manifests.put(&claim, own) {
                return Ok(claim);
            }
        } else {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Runs one formation. `None` if a newer manifest was there already: then its epoch.
pub(crate) fn run(formation: Formation, manifests: &Manifests, mischief: &Mischief, options: Options) -> Result<Ended<u64>, u64> {
    let manifest = begin(&formation, manifests)?;
    let (epoch, index, threads) = (formation.epoch.clone(), formation.index, formation.threads);
    let (members, lost) = (formation.members.clone(), formation.lost.clone());
    let (manifests, mischief) = (manifests.clone(), mischief.clone());
    let work = move |worker: &mut Worker| -> u64 {
        let (me, peers, mischief, lost) = (worker.index(), worker.peers(), mischief.clone(), lost.clone());
        let mut counts: BTreeMap<u64, u64> =
            manifest.counts.iter().filter(|(word, _)| (**word as usize) % peers == me).map(|(word, count)| (*word, *count)).collect();
        let probe = ProbeHandle::new();
        let asleep = Arc::clone(&mischief.sleep);
        let (manifest, manifests, members) = (manifest.clone(), manifests.clone(), members.clone());
        let (own, own_name) = (members[index].id.clone(), members[index].id.clone());
        let mut position = manifest.positions.get(&own).copied().unwrap_or_default();
        let commit_lost = lost.clone();
        let epoch = epoch.clone();
        let mut input = worker.dataflow::<u64, _, _>(|scope| {
            let (input, records): (InputHandleVec<u64, Record>, _) = Input::new_input(&scope);
            let route = Exchange::new(|record: &Record| match record {
                Record::Word(word) => *word,
                Record::Position(..) => 0,
            });
            let mut stash = BTreeMap::<u64, Vec<Record>>::new();
            let mut capabilities = BTreeMap::new();
            let mut next = Some(CHECKPOINT - 1);
            let shards =
                records.unary_frontier::<CapacityContainerBuilder<Vec<(usize, Shard)>>, _, _, _>(route, "Count", |capability, _| {
                    let mut capability = Some(capability);
                    move |(input, frontier), output| {
                        input.for_each(|cap, records| {
                            let time = *cap.least().expect("one time");
                            capabilities.entry(time).or_insert_with(|| cap.retain_least(0).expect("one time"));
                            stash.entry(time).or_default().append(records);
                        });
                        if frontier.is_empty() {
                            (capability, next) = (None, None);
                        }
                        // A shard for each checkpoint that has passed, with everything up to it and nothing after.
                        while let Some(checkpoint) = next.filter(|checkpoint| !frontier.less_equal(checkpoint)) {
                            let mut positions = Vec::new();
                            let rest = stash.split_off(&(checkpoint + 1));
                            for record in std::mem::replace(&mut stash, rest).into_values().flatten() {
                                match record {
                                    Record::Word(word) => {
                                        assert!(!mischief.panic.swap(false, Ordering::SeqCst), "an operator fails as it was asked to");
                                        *counts.entry(word).or_default() += 1;
                                    }
                                    Record::Position(member, position) => positions.push((member, position)),
                                }
                            }
                            let rest = capabilities.split_off(&(checkpoint + 1));
                            capabilities = rest;
                            if let Some(capability) = &mut capability {
                                capability.downgrade(&checkpoint);
                                let counts = counts.iter().map(|(word, count)| (*word, *count)).collect();
                                output.session(&*capability).give((me, Shard { counts, positions }));
                                capability.downgrade(&(checkpoint + 1));
                            }
                            next = Some(checkpoint + CHECKPOINT);
                        }
                    }
                });
            let mut manifest = manifest.clone();
            let mut gathered = BTreeMap::<u64, Vec<Shard>>::new();
            let to_first = Exchange::new(|_: &(usize, Shard)| 0);
            let done = shards.unary_frontier::<CapacityContainerBuilder<Vec<()>>, _, _, _>(to_first, "Commit", move |_, _| {
                move |(input, frontier), _| {
                    input.for_each(|cap, shards| {
                        gathered.entry(*cap.least().expect("one time")).or_default().extend(shards.drain(..).map(|(_, shard)| shard));
                    });
                    while let Some(entry) = gathered.first_entry().filter(|entry| !frontier.less_equal(entry.key())) {
                        let shards = entry.remove();
                        assert_eq!(shards.len(), peers, "one shard of each worker");
                        manifest.sequence += 1;
                        (manifest.epoch, manifest.leader) = (epoch.counter, epoch.leader.to_string());
                        manifest.counts = shards.iter().flat_map(|shard| shard.counts.iter().copied()).collect();
                        for (member, position) in shards.iter().flat_map(|shard| &shard.positions) {
                            manifest.positions.insert(members[*member].id.clone(), *position);
                        }
                        if !manifests.put(&manifest, &own) {
                            commit_lost.set(Cause::Failed { error: "somebody else commits".to_owned() });
                            return;
                        }
                    }
                }
            });
            done.container::<Vec<_>>().probe_with(&probe);
            input
        });
        let nap = move || Duration::from_millis(asleep.load(Ordering::SeqCst));
        let is_source = me % threads == 0;
        let mut tick = 0;
        if !is_source {
            input.close();
            while !lost.is_set() {
                worker.step_or_park(Some(Duration::from_millis(5)));
            }
        } else {
            while !lost.is_set() {
                if tick < WINDOW || !probe.less_than(&(tick - WINDOW)) {
                    for _ in 0..WORDS_PER_TICK {
                        input.send(Record::Word(word(&own_name, position)));
                        position += 1;
                    }
                    if tick % CHECKPOINT == CHECKPOINT - 1 {
                        input.send(Record::Position(index, position));
                    }
                    tick += 1;
                    input.advance_to(tick);
                }
                worker.step_or_park(Some(Duration::from_millis(2)));
            }
        }
        std::thread::sleep(nap());
        tick
    };
    Ok(execute(formation, options, work).expect("threads are to be had"))
}
