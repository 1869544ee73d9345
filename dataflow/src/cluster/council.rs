//! Who lives, who leads, and who forms the next generation: what a process concludes from candidates, beats and losses. No I/O, no clock.
//!
//! ```text
//!  gossip: candidates ─► counted ─┐
//!  beats ──────────────► heard ───┴► live ─► those who hear each other ─► same version ─► lowest id leads ─► form
//!                                              └ majority of counted? ──┘ └ largest group? ┘
//! ```
//!
//! *Counted* for a majority is every candidate that gossip lists, and for [`Settings::remember`] those that it listed: a cut-off minority
//! must not come to a majority because its gossip forgets the others. Only who says that it leaves is not counted any more. Of one or two
//! that are counted any may form: there the manifest alone decides.
//!
//! *Live* is who was heard lately; after a loss, who was heard a beat after it. Which connection broke says nothing of who is to blame:
//! survivors take their connections down at once and look like the dead to each other. That a *beat* connection closed does say something,
//! and spares the wait for the silent: until then, whoever took part in the lost generation is waited for, [`Settings::dead_after`] long.
//!
//! Only processes that all hear each other form; so a link that is broken between two of them does not keep the others from running. The
//! form goes to its members with the leader's beats; a member takes it only from whom it sees as leader itself. It is superseded when a
//! member is lost, fails to connect in [`Settings::mesh_timeout`] or ends its part, when a candidate comes, or when a manifest has a
//! higher epoch. Forms that end soon after they began are repeated ever more slowly.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::{Duration, Instant},
};

use super::{
    Candidate, Epoch, Member, Settings,
    wire::{Beat, Form, Hello, Why},
};

/// Longest pause before a form that failed is repeated, in beats.
const MAX_PAUSE_BEATS: u32 = 32;
/// Processes that may be remembered, beyond those that gossip lists.
const MAX_STRANGERS: usize = 1024;

#[derive(Debug)]
pub(crate) struct Council {
    settings: Settings,
    me: Candidate,
    peers: BTreeMap<String, Peer>,
    /// Highest counter of an epoch heard of, and of a manifest that is not ours.
    newest: u64,
    floor: u64,
    /// The form taken last, and what became of it.
    form: Option<Form>,
    taken: Instant,
    is_running: bool,
    is_ended: bool,
    /// Members that have said that they run it.
    running: BTreeSet<String>,
    started: Instant,
    settle: Settle,
    failures: u32,
    /// What would be formed, and since when.
    desired: (Vec<(String, u64)>, Instant),
    /// What keeps this process from forming, for the log.
    obstacle: Option<(Obstacle, Instant)>,
    offer: Option<Form>,
}

/// Why this process, as leader, does not form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Obstacle {
    /// Too few hear each other.
    Minority { live: usize, counted: usize },
    /// Others have another version, number of threads or settings, and are more.
    OtherVersion,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Minority { live, counted } => write!(f, "{live} of {counted} candidates hear each other, which is no majority"),
            Self::OtherVersion => write!(f, "more candidates have another wire version, number of threads or other settings"),
        }
    }
}

/// What to wait for before the next form.
#[derive(Debug)]
struct Settle {
    /// A loss, after which to be heard again, if there was one.
    loss: Option<Instant>,
    since: Instant,
    least: Duration,
    /// Whom to wait for, at most [`Settings::dead_after`]; `None` for all that are counted.
    expected: Option<BTreeSet<String>>,
}

#[derive(Debug, Default)]
struct Peer {
    /// As gossip lists it, and when it last did.
    listed: Option<Candidate>,
    last_listed: Option<Instant>,
    /// As it says itself.
    voice: Option<Voice>,
    /// Whether its beats come over a connection that is open, and which.
    connection: Option<u64>,
    /// Whether there was one and it ended.
    is_closed: bool,
    /// The incarnation that said that it leaves.
    left: Option<u64>,
}

#[derive(Debug)]
struct Voice {
    candidate: Candidate,
    wire: u32,
    threads: usize,
    alike: BTreeMap<String, String>,
    at: Instant,
    beat: Beat,
}

/// What members of one form have in common: wire version, threads, settings.
type Kind<'a> = (u32, usize, &'a BTreeMap<String, String>);

/// What this process sees.
#[derive(Debug)]
struct View {
    counted: usize,
    /// Live processes, with this one, that hear each other.
    clique: Vec<Member>,
    /// Those of them with this one's version, threads and settings.
    group: Vec<Member>,
    /// Whether no other group is larger.
    is_largest: bool,
}

impl View {
    fn leader(&self) -> &str {
        self.group.first().map_or("", |member| &member.id)
    }

    fn obstacle(&self) -> Option<Obstacle> {
        let (live, counted) = (self.clique.len(), self.counted);
        if counted > 2 && live * 2 <= counted {
            return Some(Obstacle::Minority { live, counted });
        }
        (!self.is_largest).then_some(Obstacle::OtherVersion)
    }
}

impl Council {
    pub(crate) fn new(settings: Settings, me: Candidate, newest: u64, now: Instant) -> Self {
        Self {
            settings,
            me,
            peers: BTreeMap::new(),
            newest,
            floor: 0,
            form: None,
            taken: now,
            is_running: false,
            is_ended: false,
            running: BTreeSet::new(),
            started: now,
            settle: Settle { loss: None, since: now, least: Duration::ZERO, expected: None },
            failures: 0,
            desired: (Vec::new(), now),
            obstacle: None,
            offer: None,
        }
    }

    /// Takes gossip's list.
    pub(crate) fn list(&mut self, candidates: &[Candidate], now: Instant) {
        for peer in self.peers.values_mut() {
            peer.listed = None;
        }
        for candidate in candidates.iter().filter(|candidate| candidate.id != self.me.id) {
            let peer = self.peers.entry(candidate.id.clone()).or_default();
            peer.listed = Some(candidate.clone());
            peer.last_listed = Some(now);
        }
        let remember = self.settings.remember;
        self.peers.retain(|_, peer| peer.listed.is_some() || peer.connection.is_some() || peer.is_counted(now, remember));
    }

    /// Where to reach whom, by the newest that is known of each.
    pub(crate) fn addresses(&self) -> Vec<Candidate> {
        let newest = |peer: &Peer| {
            let said = peer.voice.as_ref().map(|voice| &voice.candidate);
            peer.listed.iter().chain(said).max_by_key(|candidate| candidate.incarnation).cloned()
        };
        self.peers.values().filter(|peer| peer.left.is_none() || peer.is_back()).filter_map(newest).collect()
    }

    /// A process dialled for beats over `connection`. Why it is refused, if it is.
    pub(crate) fn connect(&mut self, hello: &Hello, connection: u64, now: Instant) -> Result<(), String> {
        if hello.from.id == self.me.id {
            return Err(format!("{:?} is the name of this process", self.me.id));
        }
        if !self.peers.contains_key(&hello.from.id) && self.peers.len() >= MAX_STRANGERS {
            return Err("too many processes".to_owned());
        }
        let peer = self.peers.entry(hello.from.id.clone()).or_default();
        if let Some(voice) = &peer.voice
            && peer.connection.is_some()
            && voice.candidate.incarnation > hello.from.incarnation
        {
            return Err(format!("incarnation {} of {:?} is here", voice.candidate.incarnation, hello.from.id));
        }
        let beat = Beat::default();
        let (candidate, alike) = (hello.from.clone(), hello.alike.clone());
        peer.voice = Some(Voice { candidate, wire: hello.wire, threads: hello.threads, alike, at: now, beat });
        peer.connection = Some(connection);
        peer.is_closed = false;
        Ok(())
    }

    /// A beat over `connection`. False if another connection has taken its place.
    pub(crate) fn hear(&mut self, id: &str, connection: u64, mut beat: Beat, now: Instant) -> bool {
        let Some(peer) = self.peers.get_mut(id) else { return false };
        let Some(voice) = peer.voice.as_mut().filter(|_| peer.connection == Some(connection)) else { return false };
        self.newest = self.newest.max(beat.newest).max(beat.floor);
        self.floor = self.floor.max(beat.floor);
        if let Some(form) = beat.form.take() {
            self.newest = self.newest.max(form.epoch.counter);
            if *form.epoch.leader == *id {
                self.offer = Some(form);
            }
        }
        if beat.leaving {
            peer.left = Some(voice.candidate.incarnation);
        }
        if let (Some(form), Some(running)) = (&self.form, &beat.running)
            && form.epoch == *running
        {
            self.running.insert(id.to_owned());
        }
        voice.at = now;
        voice.beat = beat;
        true
    }

    /// The connection that beats came over ended.
    pub(crate) fn disconnect(&mut self, id: &str, connection: u64) {
        if let Some(peer) = self.peers.get_mut(id)
            && peer.connection == Some(connection)
        {
            peer.connection = None;
            peer.is_closed = true;
        }
    }

    /// What to tell a process now.
    pub(crate) fn beat(&self, to: &str, now: Instant) -> Beat {
        let hears =
            |(id, peer): (&String, &Peer)| peer.voice_within(self.settings.dead_after, now).map(|v| (id.clone(), v.candidate.incarnation));
        let form = self.form.as_ref().filter(|form| {
            *form.epoch.leader == *self.me.id && !self.running.contains(to) && form.members.iter().any(|member| member.id == to)
        });
        Beat {
            newest: self.newest,
            floor: self.floor,
            running: self.running_epoch().cloned(),
            hears: self.peers.iter().filter_map(hears).collect(),
            leaving: false,
            form: form.cloned(),
        }
    }

    fn running_epoch(&self) -> Option<&Epoch> {
        self.form.as_ref().filter(|_| self.is_running && !self.is_ended).map(|form| &form.epoch)
    }

    /// No epoch up to this counter can commit.
    pub(crate) fn raise(&mut self, counter: u64) {
        self.floor = self.floor.max(counter);
        self.newest = self.newest.max(counter);
    }

    /// Whether a connection of this epoch may belong to a form that is taken, or will be.
    pub(crate) fn is_current(&self, epoch: &Epoch) -> bool {
        epoch.counter > self.floor && self.form.as_ref().is_none_or(|form| *epoch >= form.epoch)
    }

    /// How many candidates count for a majority.
    pub(crate) fn counted(&self, now: Instant) -> usize {
        1 + self.peers.values().filter(|peer| peer.is_counted(now, self.settings.remember)).count()
    }

    /// All connections of the form are there.
    pub(crate) fn runs(&mut self, epoch: &Epoch, now: Instant) {
        if self.form.as_ref().is_some_and(|form| form.epoch == *epoch) {
            (self.is_running, self.taken) = (true, now);
        }
    }

    /// This process's part of the form is over, or did not come about.
    pub(crate) fn ends(&mut self, epoch: &Epoch, now: Instant) {
        if self.form.as_ref().is_some_and(|form| form.epoch == *epoch) && !self.is_ended {
            self.unsettle(now);
        }
    }

    /// This process did nothing for a while: what it has not heard meanwhile says nothing.
    pub(crate) fn paused(&mut self, now: Instant) {
        self.settle = Settle { loss: None, since: now, least: self.settle.least.max(self.settings.beat), expected: None };
    }

    fn unsettle(&mut self, now: Instant) {
        self.is_ended = true;
        let is_short = now < self.taken + self.settings.dead_after * 2;
        self.failures = if is_short { self.failures + 1 } else { 0 };
        let pause = 2_u32.saturating_pow(self.failures.saturating_sub(1)).min(MAX_PAUSE_BEATS);
        let expected = self.form.iter().flat_map(|form| &form.members).map(|member| member.id.clone()).collect();
        self.settle = Settle { loss: Some(now), since: now, least: self.settings.beat * pause, expected: Some(expected) };
    }

    /// Why the form that runs cannot go on, though nothing broke and nobody forms another: a member hangs and this side is the minority, or
    /// the other side is of another version.
    pub(crate) fn expired(&self, now: Instant) -> Option<String> {
        let form = self.form.as_ref().filter(|_| self.is_running && !self.is_ended)?;
        if let Some((Obstacle::OtherVersion, since)) = self.obstacle
            && now >= since + self.settings.beat * 2
        {
            return Some(Obstacle::OtherVersion.to_string());
        }
        // The leader has had time to form without the silent one.
        let limit = self.settings.dead_after * 2;
        let is_heard = |member: &Member| {
            let voice = self.peers.get(&member.id).and_then(|peer| peer.voice.as_ref());
            member.id == self.me.id || voice.is_some_and(|voice| now < voice.at.max(self.taken) + limit)
        };
        let silent = form.members.iter().find(|member| !is_heard(member))?;
        Some(format!("member {:?} is silent", silent.id))
    }

    /// The form to take now, if there is one: offered by the leader, or made by this process.
    pub(crate) fn decide(&mut self, now: Instant) -> Option<Form> {
        let view = self.view(now);
        let form = self.offer.take().filter(|offer| self.accepts(offer, &view)).or_else(|| self.lead(&view, now))?;
        self.take(&form, now);
        Some(form)
    }

    /// The next form of a process that has no others.
    pub(crate) fn alone(&mut self, now: Instant) -> Form {
        let why = if self.form.is_some() { Why::Failure } else { Why::Start };
        let form = self.form_of(vec![self.me.clone()], why);
        self.take(&form, now);
        form
    }

    fn form_of(&self, members: Vec<Member>, why: Why) -> Form {
        let epoch = Epoch { counter: self.newest.max(self.floor) + 1, leader: self.me.id.as_str().into() };
        Form { epoch, members, threads: self.settings.threads, wire: self.settings.wire, why }
    }

    fn take(&mut self, form: &Form, now: Instant) {
        self.newest = self.newest.max(form.epoch.counter);
        (self.is_running, self.is_ended, self.taken) = (false, false, now);
        self.running.clear();
        self.obstacle = None;
        self.form = Some(form.clone());
    }

    fn accepts(&self, offer: &Form, view: &View) -> bool {
        let is_newer = offer.epoch.counter > self.floor && self.form.as_ref().is_none_or(|form| offer.epoch > form.epoch);
        let is_member = |member: &Member| member.id == self.me.id && member.incarnation == self.me.incarnation;
        is_newer
            && *offer.epoch.leader == *view.leader()
            && (offer.wire, offer.threads) == (self.settings.wire, self.settings.threads)
            && offer.members.iter().any(is_member)
            && offer.members.windows(2).all(|pair| pair[0].id < pair[1].id)
    }

    fn lead(&mut self, view: &View, now: Instant) -> Option<Form> {
        let desired: Vec<(String, u64)> = view.group.iter().map(|member| (member.id.clone(), member.incarnation)).collect();
        if self.desired.0 != desired {
            self.desired = (desired, now);
        }
        if view.leader() != self.me.id {
            self.obstacle = None;
            return None;
        }
        if let Some(obstacle) = view.obstacle() {
            if self.obstacle.is_none_or(|(known, _)| known != obstacle) {
                tracing::warn!(%obstacle, "no generation of the dataflow can be formed, ingest and reads go on");
                self.obstacle = Some((obstacle, now));
            }
            return None;
        }
        self.obstacle = None;
        let why = self.reason(view, now)?;
        self.is_settled(view, now).then(|| self.form_of(view.group.clone(), why))
    }

    /// Why there should be a new form, if there should.
    fn reason(&mut self, view: &View, now: Instant) -> Option<Why> {
        let Some(form) = &self.form else {
            let is_running = |peer: &Peer| peer.voice.as_ref().is_some_and(|voice| voice.beat.running.is_some());
            return Some(if self.peers.values().any(is_running) { Why::Join } else { Why::Start });
        };
        let same = |a: &Member, b: &Member| a.id == b.id && a.incarnation == b.incarnation;
        let mut missing = form.members.iter().filter(|member| !view.group.iter().any(|present| same(present, member))).peekable();
        if missing.peek().is_some() {
            let why = |member: &Member| match self.peers.get(&member.id) {
                Some(peer) if peer.left == Some(member.incarnation) => Why::Leave,
                Some(peer) if peer.voice.as_ref().is_some_and(|voice| voice.candidate.incarnation > member.incarnation) => Why::Join,
                Some(peer) if peer.connection.is_some() && !self.is_ended => Why::Silence,
                _ => Why::Loss,
            };
            return missing.map(why).min_by_key(|why| [Why::Loss, Why::Silence, Why::Leave, Why::Join].iter().position(|w| w == why));
        }
        if self.is_ended {
            return Some(Why::Failure);
        }
        let runs = |member: &Member| member.id == self.me.id || self.peers.get(&member.id).is_some_and(|peer| peer.runs(&form.epoch));
        let has_failed =
            |member: &Member| !runs(member) && (self.running.contains(&member.id) || now > self.taken + self.settings.mesh_timeout);
        if form.members.iter().any(has_failed) {
            self.unsettle(now);
            return Some(Why::Failure);
        }
        if form.members.len() != view.group.len() || *form.epoch.leader != *self.me.id {
            return Some(Why::Join);
        }
        (self.floor >= form.epoch.counter).then_some(Why::Epoch)
    }

    fn is_settled(&self, view: &View, now: Instant) -> bool {
        if view.counted == 1 && self.form.is_none() {
            return now >= self.started + self.settings.alone_after;
        }
        let is_stable = now >= self.desired.1 + self.settings.beat;
        let present = |id: &str| view.clique.iter().any(|member| member.id == id);
        let is_doubtful = |(id, peer): (&String, &Peer)| {
            let expected =
                self.settle.expected.as_ref().map_or_else(|| peer.is_counted(now, self.settings.remember), |ids| ids.contains(id));
            expected && !present(id) && !peer.is_closed && peer.left.is_none()
        };
        let waited = now.saturating_duration_since(self.settle.since);
        // Only what failed and is tried again unchanged has to wait for longer.
        let is_repeated = self.form.as_ref().is_some_and(|form| form.members == view.group);
        let least = if is_repeated { self.settle.least } else { self.settle.least.min(self.settings.beat) };
        is_stable && waited >= least && (waited >= self.settings.dead_after || !self.peers.iter().any(is_doubtful))
    }

    fn view(&self, now: Instant) -> View {
        let heard_since = self.settle.loss.map(|loss| loss + self.settings.beat);
        let is_live = |peer: &&Peer| {
            peer.is_counted(now, self.settings.remember)
                && peer.connection.is_some()
                && peer.voice_within(self.settings.dead_after, now).is_some_and(|voice| heard_since.is_none_or(|since| voice.at >= since))
        };
        let me = (self.me.id.as_str(), self.me.incarnation);
        let mut clique: Vec<&Voice> = Vec::new();
        for voice in self.peers.values().filter(is_live).filter_map(|peer| peer.voice.as_ref()) {
            let hear_each_other = |other: &&Voice| voice.hears(other.name()) && other.hears(voice.name());
            if voice.hears(me) && clique.iter().all(hear_each_other) {
                clique.push(voice);
            }
        }
        let mut groups: BTreeMap<Kind<'_>, Vec<Member>> = BTreeMap::new();
        let own = (self.settings.wire, self.settings.threads, &self.settings.alike);
        groups.entry(own).or_default().push(self.me.clone());
        for voice in &clique {
            groups.entry((voice.wire, voice.threads, &voice.alike)).or_default().push(voice.candidate.clone());
        }
        for members in groups.values_mut() {
            members.sort_by(|a, b| a.id.cmp(&b.id));
        }
        let rank = |members: &Vec<Member>| (members.len(), std::cmp::Reverse(members.first().map(|member| member.id.clone())));
        let largest = groups.values().map(rank).max();
        let group = groups.remove(&own).unwrap_or_default();
        let is_largest = largest == Some(rank(&group));
        let clique = std::iter::once(self.me.clone()).chain(clique.iter().map(|voice| voice.candidate.clone())).collect();
        View { counted: self.counted(now), clique, group, is_largest }
    }
}

impl Peer {
    /// Whether it counts for a majority.
    fn is_counted(&self, now: Instant, remember: Duration) -> bool {
        let is_remembered = self.listed.is_some() || self.last_listed.is_some_and(|at| now.saturating_duration_since(at) < remember);
        is_remembered && (self.left.is_none() || self.is_back())
    }

    /// Whether it came back after it left.
    fn is_back(&self) -> bool {
        let said = self.voice.as_ref().map(|voice| voice.candidate.incarnation);
        let listed = self.listed.as_ref().map(|candidate| candidate.incarnation);
        said.max(listed) > self.left
    }

    fn voice_within(&self, limit: Duration, now: Instant) -> Option<&Voice> {
        self.voice.as_ref().filter(|voice| self.connection.is_some() && now.saturating_duration_since(voice.at) < limit)
    }

    fn runs(&self, epoch: &Epoch) -> bool {
        self.voice.as_ref().is_some_and(|voice| voice.beat.running.as_ref() == Some(epoch))
    }
}

impl Voice {
    fn name(&self) -> (&str, u64) {
        (&self.candidate.id, self.candidate.incarnation)
    }

    fn hears(&self, (id, incarnation): (&str, u64)) -> bool {
        self.beat.hears.iter().any(|(other, other_incarnation)| other == id && *other_incarnation == incarnation)
    }
}
