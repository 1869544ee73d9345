//! Councils of several processes in a world without sockets, threads or clocks.

use proptest::prelude::*;

use super::*;
use crate::cluster::Role;

const BEAT: Duration = Duration::from_millis(100);

fn candidate(id: &str, incarnation: u64) -> Candidate {
    Candidate { id: id.to_owned(), incarnation, address: ([127, 0, 0, 1], 7947).into(), role: Role::Ingester }
}

fn settings(wire: u32) -> Settings {
    Settings { wire, alone_after: Duration::ZERO, ..Settings::default() }
}

/// Processes with councils, between which beats travel at once, unless their link is cut, and without sockets or threads: a form that
/// all members have taken runs.
struct World {
    now: Instant,
    councils: BTreeMap<String, Council>,
    cut: BTreeSet<(String, String)>,
    /// Every form that was made or taken, by whom.
    forms: Vec<(String, Form)>,
    /// The epoch that each process took last, since it was started.
    taken: BTreeMap<String, Epoch>,
    listed: Vec<Candidate>,
}

impl World {
    fn new() -> Self {
        let (councils, taken) = (BTreeMap::new(), BTreeMap::new());
        Self { now: Instant::now(), councils, cut: BTreeSet::new(), forms: Vec::new(), taken, listed: Vec::new() }
    }

    fn of(ids: &[&str]) -> Self {
        let mut world = Self::new();
        ids.iter().for_each(|id| world.start(id, 1, 1));
        world
    }

    fn start(&mut self, id: &str, incarnation: u64, wire: u32) {
        let me = candidate(id, incarnation);
        self.listed.retain(|listed| listed.id != id);
        self.listed.push(me.clone());
        self.taken.remove(id);
        self.councils.insert(id.to_owned(), Council::new(settings(wire), me, 0, self.now));
    }

    /// Its connections close, and it is heard no more.
    fn kill(&mut self, id: &str) {
        self.councils.remove(id);
        for council in self.councils.values_mut() {
            council.disconnect(id, 0);
            if let Some(epoch) =
                council.form.as_ref().filter(|form| form.members.iter().any(|member| member.id == id)).map(|f| f.epoch.clone())
            {
                council.ends(&epoch, self.now);
            }
        }
    }

    fn cut(&mut self, one: &str, other: &str) {
        self.cut.insert((one.to_owned(), other.to_owned()));
        self.cut.insert((other.to_owned(), one.to_owned()));
    }

    fn beat(&mut self) {
        self.now += BEAT / 2;
        let ids: Vec<String> = self.councils.keys().cloned().collect();
        for from in &ids {
            for to in ids.iter().filter(|to| *to != from && !self.cut.contains(&(from.clone(), (*to).clone()))) {
                let speaker = &self.councils[from];
                let (beat, me, wire) = (speaker.beat(to, self.now), speaker.me.clone(), speaker.settings.wire);
                let hello = Hello {
                    cluster: String::new(),
                    wire,
                    threads: 1,
                    from: me,
                    to: to.clone(),
                    epoch: None,
                    asks: false,
                    alike: speaker.settings.alike.clone(),
                };
                let listener = self.councils.get_mut(to).expect("is there");
                let is_known = listener.peers.get(from).is_some_and(|peer| {
                    peer.connection.is_some()
                        && peer.voice.as_ref().is_some_and(|voice| voice.candidate.incarnation == hello.from.incarnation)
                });
                if is_known || listener.connect(&hello, 0, self.now).is_ok() {
                    listener.hear(from, 0, beat, self.now);
                }
            }
        }
        for id in &ids {
            let (now, listed) = (self.now, self.listed.clone());
            let council = self.councils.get_mut(id).expect("is there");
            council.list(&listed, now);
            if council.expired(now).is_some() {
                let epoch = council.form.as_ref().expect("runs").epoch.clone();
                council.ends(&epoch, now);
            }
            if let Some(form) = council.decide(now) {
                let before = self.taken.insert(id.clone(), form.epoch.clone());
                assert!(before.is_none_or(|before| before < form.epoch), "{id} goes back to {}", form.epoch);
                self.forms.push((id.clone(), form));
            }
        }
        for id in &ids {
            let Some(form) = self.councils[id].form.clone() else { continue };
            let has_taken = |member: &Member| {
                self.councils.get(&member.id).is_some_and(|council| {
                    council.me.incarnation == member.incarnation && council.form.as_ref() == Some(&form) && !council.is_ended
                }) && !self.cut.contains(&(id.clone(), member.id.clone()))
            };
            if form.members.iter().all(has_taken) && !self.councils[id].is_running {
                let now = self.now;
                self.councils.get_mut(id).expect("is there").runs(&form.epoch, now);
            }
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.beat();
        }
    }

    /// Members of what a process runs.
    fn members(&self, id: &str) -> Vec<&str> {
        let council = &self.councils[id];
        let form = council.form.as_ref().filter(|_| council.running_epoch().is_some());
        form.map(|form| form.members.iter().map(|member| member.id.as_str()).collect()).unwrap_or_default()
    }

    fn forms_made(&self) -> usize {
        self.forms.iter().filter(|(id, form)| **id == *form.epoch.leader).count()
    }
}

#[test]
fn all_that_are_listed_form_once() {
    let mut world = World::of(&["b", "c", "a"]);
    world.run(Duration::from_millis(500));
    for id in ["a", "b", "c"] {
        assert_eq!(world.members(id), ["a", "b", "c"]);
    }
    assert_eq!(world.forms_made(), 1, "{:?}", world.forms);
    world.run(Duration::from_secs(60));
    assert_eq!(world.forms_made(), 1, "and it stays");
    let (_, form) = &world.forms[0];
    assert_eq!((&*form.epoch.leader, form.epoch.counter, form.why), ("a", 1, Why::Start));
}

#[test]
fn one_alone_forms_at_once_if_it_may() {
    let mut world = World::of(&["a"]);
    world.beat();
    assert_eq!(world.members("a"), ["a"]);
    let mut world = World::new();
    world.start("a", 1, 1);
    world.councils.get_mut("a").expect("is there").settings.alone_after = Duration::from_secs(3);
    world.run(Duration::from_millis(2900));
    assert_eq!(world.forms_made(), 0);
    world.run(Duration::from_millis(200));
    assert_eq!(world.members("a"), ["a"]);
}

#[test]
fn who_is_listed_but_absent_is_waited_for_and_then_not() {
    let mut world = World::of(&["a", "b"]);
    world.listed.push(candidate("c", 1));
    world.run(Duration::from_millis(900));
    assert_eq!(world.forms_made(), 0);
    world.run(Duration::from_millis(300));
    assert_eq!(world.members("a"), ["a", "b"]);
}

#[test]
fn after_a_loss_the_others_form_in_two_beats() {
    let mut world = World::of(&["a", "b", "c"]);
    world.run(Duration::from_secs(1));
    world.kill("a");
    world.run(BEAT * 3);
    assert_eq!(world.members("b"), ["b", "c"]);
    assert_eq!(world.members("c"), ["b", "c"]);
    assert_eq!(world.forms.last().expect("formed").1.why, Why::Loss);
    // It comes back under its name before anybody has heard that it was gone.
    world.start("a", 2, 1);
    world.run(Duration::from_secs(2));
    assert_eq!(world.members("a"), ["a", "b", "c"]);
    assert_eq!(world.forms.last().expect("formed").1.why, Why::Join);
    world.start("a", 3, 1);
    world.run(Duration::from_secs(2));
    assert_eq!(world.members("b"), ["a", "b", "c"]);
    assert!(world.councils["b"].form.as_ref().expect("runs").members.iter().any(|member| member.incarnation == 3));
}

#[test]
fn a_silent_member_is_left_out_and_taken_back() {
    let mut world = World::of(&["a", "b", "c"]);
    world.run(Duration::from_secs(1));
    world.cut("c", "a");
    world.cut("c", "b");
    world.run(Duration::from_millis(1400));
    assert_eq!(world.members("a"), ["a", "b"]);
    assert_eq!(world.forms.last().expect("formed").1.why, Why::Silence);
    world.run(Duration::from_secs(60));
    assert_eq!(world.members("c"), Vec::<&str>::new(), "a minority does not run");
    world.cut.clear();
    world.run(Duration::from_secs(1));
    assert_eq!(world.members("c"), ["a", "b", "c"]);
}

#[test]
fn a_minority_stays_one_when_gossip_forgets_the_others_but_not_for_ever() {
    let mut world = World::of(&["a", "b", "c"]);
    world.run(Duration::from_secs(1));
    world.cut("a", "b");
    world.cut("a", "c");
    world.run(Duration::from_secs(5));
    world.listed.retain(|candidate| candidate.id == "a");
    world.run(Duration::from_secs(30));
    assert_eq!(world.members("a"), Vec::<&str>::new());
    assert_eq!(world.members("b"), ["b", "c"]);
    world.now += Settings::default().remember;
    world.run(Duration::from_secs(10));
    assert_eq!(world.members("a"), ["a"]);
}

#[test]
fn who_said_farewell_does_not_count() {
    let mut world = World::of(&["a", "b", "c"]);
    world.run(Duration::from_secs(1));
    for (leaver, left) in [("c", vec!["a", "b"]), ("a", vec!["b"])] {
        for other in &left {
            let now = world.now;
            let council = world.councils.get_mut(*other).expect("is there");
            assert!(council.hear(leaver, 0, Beat { leaving: true, ..Beat::default() }, now));
        }
        world.kill(leaver);
        world.run(Duration::from_secs(1));
        assert_eq!(world.members("b"), left);
    }
}

#[test]
fn a_broken_link_leaves_out_as_few_as_possible_and_does_not_flap() {
    let mut world = World::of(&["a", "b", "c", "d"]);
    world.run(Duration::from_secs(1));
    world.cut("a", "c");
    world.run(Duration::from_secs(5));
    let made = world.forms_made();
    world.run(Duration::from_secs(60));
    assert_eq!(world.members("a"), ["a", "b", "d"]);
    assert_eq!(world.members("d"), ["a", "b", "d"]);
    assert_eq!(world.forms_made(), made, "{:?}", world.forms);
}

#[test]
fn a_form_that_does_not_come_about_is_repeated_ever_later() {
    let mut world = World::of(&["a", "b"]);
    world.run(Duration::from_secs(1));
    let mut ends = Vec::new();
    for _ in 0..10 {
        let epoch = world.councils["a"].form.as_ref().expect("runs").epoch.clone();
        for council in world.councils.values_mut() {
            council.ends(&epoch, world.now);
        }
        let before = world.now;
        while world.members("a").is_empty() {
            world.beat();
        }
        ends.push(world.now - before);
    }
    assert!(ends[0] <= BEAT * 3 && ends.is_sorted() && ends[9] >= BEAT * 16 && ends[9] <= BEAT * (MAX_PAUSE_BEATS + 3), "{ends:?}");
    world.run(Settings::default().dead_after * 3);
    let epoch = world.councils["a"].form.as_ref().expect("runs").epoch.clone();
    world.councils.values_mut().for_each(|council| council.ends(&epoch, world.now));
    world.run(BEAT * 3);
    assert_eq!(world.members("a"), ["a", "b"], "what ran for a while is repeated at once");
}

#[test]
fn the_larger_group_of_a_version_runs_and_of_equal_ones_the_first() {
    let mut world = World::of(&["a", "b"]);
    world.start("c", 1, 2);
    world.run(Duration::from_secs(3));
    assert_eq!((world.members("a"), world.members("c")), (vec!["a", "b"], vec![]));
    world.start("b", 2, 2);
    world.run(Duration::from_secs(3));
    assert_eq!((world.members("a"), world.members("c")), (vec![], vec!["b", "c"]));
    world.start("a", 2, 2);
    world.run(Duration::from_secs(3));
    assert_eq!(world.members("b"), ["a", "b", "c"]);
    let mut world = World::of(&["a"]);
    world.start("b", 1, 2);
    world.run(Duration::from_secs(3));
    assert_eq!((world.members("a"), world.members("b")), (vec!["a"], vec![]));
}

#[test]
fn a_higher_manifest_makes_a_higher_epoch() {
    let mut world = World::of(&["a", "b"]);
    world.run(Duration::from_secs(1));
    world.councils.get_mut("b").expect("is there").raise(99);
    world.run(Duration::from_secs(1));
    assert_eq!(world.councils["a"].running_epoch().map(|epoch| epoch.counter), Some(100));
    assert_eq!(world.forms.last().expect("formed").1.why, Why::Epoch);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever happened before: once it is quiet, all that live run one epoch, which is above all that they ever took; and no process
    /// ever took an epoch that is not above the one it had.
    #[test]
    fn in_the_end_all_run_together(
        events in prop::collection::vec((0_u8..6, 0_usize..5, 0_usize..5, 0_u64..3000), 0..30),
    ) {
        let ids = ["a", "b", "c", "d", "e"];
        let mut world = World::of(&ids);
        let mut incarnation = 1;
        for (event, one, other, millis) in events {
            incarnation += 1;
            match event {
                0 if world.councils.len() > 3 => world.kill(ids[one]),
                1 | 2 => world.start(ids[one], incarnation, 1),
                3 if one != other => world.cut(ids[one], ids[other]),
                4 => world.cut.clear(),
                _ => {
                    if let Some(council) = world.councils.get_mut(ids[one])
                        && let Some(form) = &council.form
                    {
                        let epoch = form.epoch.clone();
                        council.ends(&epoch, world.now);
                    }
                }
            }
            world.run(Duration::from_millis(millis));
        }
        world.cut.clear();
        world.run(Duration::from_secs(20));
        let live: Vec<String> = world.councils.keys().cloned().collect();
        for id in &live {
            prop_assert_eq!(world.members(id), live.iter().map(String::as_str).collect::<Vec<_>>(), "at {}", id);
        }
        let epochs: BTreeSet<_> = live.iter().map(|id| world.councils[id].running_epoch()).collect();
        prop_assert_eq!(epochs.len(), 1);
        // A form that nobody took but a leader that is gone is forgotten with it.
        let newest = live.iter().filter_map(|id| world.taken.get(id)).max();
        prop_assert_eq!(epochs.first().copied().flatten(), newest);
        // A leader that is started again before anybody heard of its form does not know of it either.
        let made: Vec<_> = world.forms.iter().filter(|(id, form)| **id == *form.epoch.leader).collect();
        let leader = |form: &Form| form.members.iter().find(|member| *member.id == *form.epoch.leader).map(|member| member.incarnation);
        let names: BTreeSet<_> = made.iter().map(|(_, form)| (&form.epoch, leader(form))).collect();
        prop_assert_eq!(names.len(), made.len(), "no two forms have one epoch");
    }
}
