//! The thread that belongs to the group: it polls, commits, and keeps as much ready as is wanted. Nothing else touches the
//! client, and nothing holds it up: who does not poll is no member for long.
//!
//! Before a record is handed out, a commit says so in its metadata: should the process die on it, the next owner knows. One
//! commit serves all that are handed out together, and gathers what was settled meanwhile. One at a time is under way.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use buqueue_core::{Backoff, BuqueueError, ErrorKind, Result};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaResult;
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::watch;

use crate::commits::Committer;
use crate::config::{KafkaOptions, OffsetReset};
use crate::error;
use crate::group::{ASKING, Group, add};
use crate::intake::Intake;
use crate::metadata::Position;
use crate::session::{Session, Slot, lock};
use crate::topology::Topology;
use crate::watch::{Broken, Probe, Work};

/// How long the thread sleeps when nothing happens.
const IDLE: Duration = Duration::from_millis(100);
/// What was settled is committed after this at the latest.
const COMMIT_EVERY: Duration = Duration::from_millis(500);
/// A consumer that takes at least so often is fast, and reads ahead.
const FAST: Duration = Duration::from_millis(100);
/// A look waits so long for records that are there and do not come: what is there may be no records.
const LOOK: Duration = Duration::from_millis(300);
/// How long a consumer that is gone stays a member for the sake of deliveries that are not settled.
const GHOST: Duration = Duration::from_secs(60);
/// How long the last commit is tried.
const LAST_COMMITS: Duration = Duration::from_secs(5);
/// How long the members of a group are waited for when partitions are dealt out anew, and for how long nothing may hold up
/// the thread. A request to join that is lost is sent again three seconds after this.
const REBALANCE: Duration = Duration::from_secs(4);
/// When a topic that could not be declared is tried again.
const REPAIR_AGAIN: Duration = Duration::from_secs(1);

/// The thread's own.
pub(crate) struct Reader {
    consumer: Arc<BaseConsumer<Group>>,
    session: Arc<Session>,
    committed_at: Instant,
    not_before: Instant,
    backoff: Backoff,
    intake: Intake,
    ahead: usize,
    grown_at: u64,
    look: Option<Look>,
    commits: Committer,
    /// A commit is under way.
    committing: bool,
    /// What was told of what failed.
    told_commits: Work,
    told_restarts: Work,
    probe: Probe,
    /// What waits cannot be handed out before something else is settled.
    held_up: bool,
    /// Where partitions ended, and no more records came, when a look has waited for them: that is no record there.
    in_vain: HashMap<Slot, (i64, i64)>,
    /// What is to be begun anew, and could not be yet.
    anew: Option<Anew>,
    /// The brokers do not know a topic any more, or again.
    repair: Arc<Mutex<Repair>>,
}

/// What becomes of a topic that was deleted.
#[derive(Debug, Default)]
enum Repair {
    #[default]
    Idle,
    Asked,
    Declared(Vec<String>),
}

/// Says what has become of it when it is dropped.
struct Done {
    repair: Arc<Mutex<Repair>>,
    session: Arc<Session>,
    outcome: Repair,
}

impl Drop for Done {
    fn drop(&mut self) {
        *lock(&self.repair) = std::mem::take(&mut self.outcome);
        self.session.wake();
    }
}

/// Partitions that are begun anew.
#[derive(Debug, Default)]
struct Anew {
    /// Topics that were created again.
    created: Vec<String>,
    /// Partitions of which nothing is committed any more, though it was.
    forgotten: Vec<Slot>,
    /// The client has ceased to read a partition whose next record it could not find.
    stopped: bool,
}

/// Where partitions end.
type Ends = KafkaResult<Vec<(Slot, i64)>>;

/// A look that is being answered.
struct Look {
    number: u64,
    /// Where each partition ended when it was asked, once that is known.
    ends: Arc<OnceLock<Ends>>,
    /// Until then records are waited for.
    until: Option<Instant>,
}

impl Look {
    /// Nobody is going to answer: the runtime has ended.
    fn is_void(&self) -> bool {
        self.ends.get().is_none() && Arc::strong_count(&self.ends) == 1
    }
}

impl Reader {
    /// Joins the group; the thread ends when the session is closed.
    pub(crate) fn start(session: &Arc<Session>) -> Result<watch::Receiver<bool>> {
        let options = &session.options;
        let mut consumer: BaseConsumer<Group> = consumer(options)
            .create_with_context(Group::new(Arc::clone(session)))
            .map_err(|error| error::from_client("consumer", error))?;
        let waking = Arc::downgrade(session);
        consumer.set_nonempty_callback(move || {
            if let Some(session) = waking.upgrade() {
                session.wake();
            }
        });
        let begun = consumer.context().begun.subscribe();
        let consumer = Arc::new(consumer);
        consumer.context().belongs_to(&consumer);
        let unstartable = |error: std::io::Error| {
            let kind = ErrorKind::BackendSpecific { code: "thread".to_owned(), message: error.to_string() };
            BuqueueError::new(kind, "the reader's thread cannot be started")
        };
        let commits = Committer::start(&consumer).map_err(unstartable)?;
        let intake = Intake::new(&consumer, session);
        let now = Instant::now();
        let reader = Self {
            consumer,
            session: Arc::clone(session),
            committed_at: now,
            not_before: now,
            backoff: Backoff::new(Duration::from_millis(50), Duration::from_secs(2)),
            intake,
            ahead: 1,
            grown_at: 0,
            look: None,
            commits,
            committing: false,
            told_commits: Work::new("committing"),
            told_restarts: Work::new("beginning partitions anew"),
            probe: Probe::new(),
            held_up: false,
            in_vain: HashMap::new(),
            anew: None,
            repair: Arc::default(),
        };
        let spawned =
            std::thread::Builder::new().name("buqueue-kafka".to_owned()).spawn(move || reader.run());
        spawned.map(|_| begun).map_err(unstartable)
    }

    fn run(mut self) {
        self.join();
        while !self.session.is_closing() {
            self.step();
            self.session.sleep(IDLE);
        }
        self.finish();
    }

    fn step(&mut self) {
        self.take_outcome();
        if self.intake.take() {
            self.begin_anew_soon(&[], true);
        }
        self.rejoin();
        self.repair();
        self.begin_anew();
        self.hand_over();
        self.answer_looks();
        self.probe.ask(self.consumer.context());
        let failure = self.consumer.context().take_failure();
        if let Some(error) = failure.filter(|error| !error.is_transient() || self.session.slots().is_empty())
        {
            self.session.mailbox.fail(error);
        }
    }

    /// Somebody has deleted a topic: it is declared again.
    fn declare(&self) {
        let mut repair = lock(&self.repair);
        if !matches!(*repair, Repair::Idle) {
            return;
        }
        *repair = Repair::Asked;
        drop(repair);
        let (session, repair) = (Arc::clone(&self.session), Arc::clone(&self.repair));
        session.runtime.clone().spawn(async move {
            // Also when its runtime ends before it does.
            let mut done = Done { repair, session: Arc::clone(&session), outcome: Repair::Idle };
            match async { Topology::new(&session.options)?.ensure_all().await }.await {
                Ok(names) => done.outcome = Repair::Declared(names),
                Err(error) => {
                    session.mailbox.fail(error);
                    tokio::time::sleep(REPAIR_AGAIN).await;
                }
            }
        });
    }

    /// Asks about the group while nobody of those who come together has committed, and joins it.
    fn join(&mut self) {
        let latest = self.session.options.config.offset_reset == OffsetReset::Latest;
        while !self.session.is_closing() {
            let group = self.consumer.context();
            let joined = if latest && group.known.get().is_none() {
                group.is_known(&self.consumer).map(|known| _ = group.known.set(known))
            } else {
                Ok(())
            };
            match joined.and_then(|()| subscribe(&self.consumer, &self.session.options)) {
                Ok(()) => return self.backoff.reset(),
                Err(error) => group.report("join", error),
            }
            self.session.sleep(self.backoff.next_delay());
        }
    }

    /// Leaves the group and joins it again, when what it gave could not be taken up.
    fn rejoin(&mut self) {
        let group = self.consumer.context();
        if Instant::now() < self.not_before || !group.rejoin.swap(false, Ordering::AcqRel) {
            return;
        }
        self.not_before = Instant::now() + self.backoff.next_delay();
        self.consumer.unsubscribe();
        if let Err(error) = subscribe(&self.consumer, &self.session.options) {
            group.rejoin.store(true, Ordering::Release);
            group.report("subscribe", error);
        }
    }

    fn repair(&mut self) {
        if self.consumer.context().missing.swap(false, Ordering::AcqRel) {
            self.declare();
        }
        let mut repair = lock(&self.repair);
        let Repair::Declared(names) = &mut *repair else { return };
        let names = std::mem::take(names);
        *repair = Repair::Idle;
        drop(repair);
        self.begin_anew_soon(&names, false);
    }

    fn begin_anew_soon(&mut self, created: &[String], stopped: bool) {
        let anew = self.anew.get_or_insert_default();
        anew.created.extend_from_slice(created);
        anew.stopped |= stopped;
        self.session.wake();
    }

    /// Begins at the start with what is left of partitions of which there is no more what was to be read next, and with those
    /// of topics that are new. Their deliveries are no longer ours to settle. Where the client has stopped, the others begin
    /// again where they were.
    fn begin_anew(&mut self) {
        let Some(mut anew) = self.anew.take_if(|_| Instant::now() >= self.not_before) else { return };
        let Err(error) = self.restart(&mut anew) else { return self.told_restarts.worked() };
        // Each of them may block: not more than one in a row.
        self.not_before = Instant::now() + self.backoff.next_delay();
        let group = self.consumer.context();
        self.told_restarts.failed(group.topic(), &error::from_client("restart", error.clone()));
        group.report("restart", error);
        self.begin_anew_soon(&anew.created, anew.stopped);
        self.anew.get_or_insert_default().forgotten.append(&mut anew.forgotten);
    }

    fn restart(&mut self, anew: &mut Anew) -> KafkaResult<()> {
        let group = Arc::clone(self.consumer.context());
        // With a topic goes what was committed of it, also where another member has created it again.
        if !anew.stopped {
            anew.forgotten.append(&mut self.forgotten()?);
        }
        for slot in self.session.slots() {
            let name = group.name(slot.topic);
            let (first, next) = self.session.later.range_of(&name, slot.partition)?;
            let reads = self.session.next(slot).unwrap_or(first);
            let is_new = anew.created.contains(&name) || anew.forgotten.contains(&slot);
            // What retention has taken is gone; what is done behind it stays done.
            let there = reads <= next && !is_new;
            if there && reads >= first && !anew.stopped {
                continue;
            }
            let begins = if there { reads.max(first) } else { first };
            let mut list = TopicPartitionList::new();
            list.add_partition_offset(&name, slot.partition, Offset::Offset(begins))?;
            // Not when it was taken away before, and could not be assigned.
            if self.consumer.assignment()?.find_partition(&name, slot.partition).is_some() {
                self.consumer.incremental_unassign(&list)?;
            }
            self.intake.forget(slot);
            if !there {
                self.session.disown(slot);
                let position = Position { next: first, read_to: first, ..Position::default() };
                self.session.own(slot, &position, true);
            }
            self.intake.split(slot);
            self.consumer.incremental_assign(&list)?;
        }
        group.reassigned.store(true, Ordering::Release);
        Ok(())
    }

    /// The partitions of which nothing is committed any more, though it was.
    fn forgotten(&self) -> KafkaResult<Vec<Slot>> {
        let group = self.consumer.context();
        let mut all = TopicPartitionList::new();
        for slot in self.session.recorded() {
            all.add_partition(&group.name(slot.topic), slot.partition);
        }
        if all.count() == 0 {
            return Ok(Vec::new());
        }
        let committed = self.consumer.committed_offsets(all, ASKING)?;
        let nothing = committed.elements().into_iter().filter(|place| place.offset() == Offset::Invalid);
        Ok(nothing.map(|place| group.slot(place.topic(), place.partition())).collect())
    }

    /// Hands over what is wanted, once a commit has told of it; commits what was settled.
    fn hand_over(&mut self) {
        if self.consumer.context().reassigned.swap(false, Ordering::AcqRel) {
            // What was refused while partitions were dealt out is accepted now.
            self.not_before = Instant::now();
            self.backoff.reset();
        }
        self.held_up = self.is_repairing();
        if self.committing || self.held_up || Instant::now() < self.not_before {
            return;
        }
        let wishes = self.session.mailbox.wishes();
        let fast = wishes.last_take.is_some_and(|taken| taken.elapsed() < FAST);
        if wishes.taken >= self.grown_at.saturating_add(self.ahead as u64) && fast {
            self.ahead = (self.ahead * 2).min(self.session.options.max_in_flight / 2).max(1);
            self.grown_at = wishes.taken;
        } else if !fast {
            self.ahead = 1;
        }
        // Who has just ceased to wait may wait again at once.
        let lately = wishes.demand_ended.is_some_and(|ended| ended.elapsed() < FAST);
        let target = wishes.demand.max(if fast || lately { self.ahead } else { 0 });
        let wanted = target.saturating_sub(wishes.ready);
        // Said before they are counted: whoever is settled from now on wakes this thread.
        self.session.waits_for_settles(true);
        let held = self.session.out() + wishes.ready;
        let free = self.session.options.max_in_flight.saturating_sub(held);
        let started = self.session.start(wanted.min(free), held == 0);
        self.held_up = !started && wanted > 0;
        self.session.waits_for_settles(self.held_up || wanted > free);
        let begins = !*self.consumer.context().begun.borrow();
        if started || self.committed_at.elapsed() >= COMMIT_EVERY || begins {
            self.commit();
        }
    }

    /// Of a topic that was created again nothing is committed before it is begun anew.
    fn is_repairing(&self) -> bool {
        self.anew.is_some() || !matches!(*lock(&self.repair), Repair::Idle)
    }

    /// Commits what was settled, and what is to be handed out; then it is.
    fn commit(&mut self) {
        self.committed_at = Instant::now();
        let positions = self.session.to_commit();
        let mut list = TopicPartitionList::with_capacity(positions.len());
        let listed = positions.iter().try_for_each(|(slot, position)| {
            add(&mut list, &self.consumer.context().name(slot.topic), slot.partition, position)
        });
        match listed {
            Ok(()) if !positions.is_empty() => {
                self.committing = true;
                self.commits.commit(list);
            }
            outcome => self.committed(outcome),
        }
    }

    fn take_outcome(&mut self) {
        if let Some(outcome) = self.commits.outcome() {
            self.committing = false;
            if outcome.is_ok() {
                self.told_commits.worked();
                let group = self.consumer.context();
                group.line.mended(group.topic(), Broken::Connection);
            }
            self.committed(outcome);
        }
    }

    fn committed(&mut self, outcome: KafkaResult<()>) {
        self.session.committed(outcome.is_ok());
        match outcome {
            Ok(()) => {
                self.backoff.reset();
                let group = self.consumer.context();
                if group.started.load(Ordering::Acquire) {
                    group.begun.send_if_modified(|begun| !std::mem::replace(begun, true));
                }
            }
            Err(error) => {
                self.not_before = Instant::now() + self.backoff.next_delay();
                // Somebody joins or leaves: the client goes along, and then it is tried again.
                let group = self.consumer.context();
                let failure = error::from_client("commit", error.clone());
                if failure.kind != ErrorKind::LeaseExpired {
                    self.told_commits.failed(group.topic(), &failure);
                }
                group.report("commit", error);
            }
        }
    }

    /// A look is answered when everything was read that was there when it was asked.
    fn answer_looks(&mut self) {
        let wishes = self.session.mailbox.wishes();
        if !wishes.is_looking() {
            self.look = None;
            return;
        }
        // One question at a time: a broker that does not answer is not asked by ever more threads.
        let asking = self.look.as_ref().is_some_and(|look| look.ends.get().is_none() && !look.is_void());
        if !asking && self.look.as_ref().is_none_or(|look| look.number < wishes.looks) {
            self.look = Some(Look { number: wishes.looks, ends: self.ends(), until: None });
        }
        let Some(look) = &mut self.look else { return };
        let number = look.number;
        let answered = match look.ends.get() {
            None => look.is_void(),
            Some(Err(error)) => {
                self.consumer.context().report("watermarks", error.clone());
                true
            }
            // Whoever looked has found something, or has gone.
            Some(Ok(_)) if wishes.demand == 0 => true,
            Some(Ok(ends)) => {
                let until = *look.until.get_or_insert_with(|| Instant::now() + LOOK);
                let mut missing = ends.iter().filter_map(|&(slot, end)| {
                    let next = self.session.next(slot).filter(|next| *next < end)?;
                    (self.in_vain.get(&slot) != Some(&(next, end))).then_some((slot, (next, end)))
                });
                let waits = self.session.ahead().records > 0 && !self.held_up;
                if waits || self.committing {
                    false
                } else if Instant::now() >= until {
                    let missing: Vec<_> = missing.collect();
                    self.in_vain.extend(missing);
                    true
                } else {
                    missing.next().is_none()
                }
            }
        };
        if answered {
            self.session.mailbox.answer(number);
            self.look = None;
        } else if self.look.as_ref().is_some_and(|look| look.ends.get().is_some()) {
            self.session.wake();
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Asks where the partitions end, on a connection that no fetch waits on: a broker answers one after the other.
    fn ends(&self) -> Arc<OnceLock<Ends>> {
        let ends = Arc::new(OnceLock::new());
        let group = self.consumer.context();
        let slots: Vec<_> =
            self.session.slots().into_iter().map(|slot| (slot, group.name(slot.topic))).collect();
        let (session, known) = (Arc::clone(&self.session), Arc::clone(&ends));
        // It blocks.
        self.session.runtime.spawn_blocking(move || {
            let range = |(slot, name): (Slot, String)| {
                session.later.range_of(&name, slot.partition).map(|(_, end)| (slot, end))
            };
            let asked = slots.into_iter().map(range).collect();
            // Set nowhere else.
            let _set = known.set(asked);
            session.wake();
        });
        ends
    }

    /// Gives back what nobody has seen, waits for what is out, and leaves the group.
    fn finish(mut self) {
        let deadline = Instant::now() + GHOST;
        self.give_back();
        // Nothing more is taken from the client; what is out is what matters.
        self.session.waits_for_settles(true);
        self.commit_all();
        // Whoever closes does not wait for deliveries; what becomes of them is committed all the same.
        self.session.mailbox.finish();
        while self.session.out() > 0 && Instant::now() < deadline {
            self.take_outcome();
            self.serve();
            let may = !self.committing && !self.is_repairing() && Instant::now() >= self.not_before;
            if may && self.session.is_dirty() {
                self.commit();
            }
            self.session.sleep(IDLE);
        }
        self.commit_all();
        self.consumer.context().leaving.store(true, Ordering::Release);
        let session = Arc::clone(&self.session);
        for slot in session.slots() {
            session.disown(slot);
        }
        // Leaves the group; blocks for a moment, and for ever when a broker has gone in a bad one.
        let watched = Arc::clone(&session);
        session.runtime.spawn(async move {
            tokio::time::sleep(Duration::from_secs(3)).await;
            watched.mailbox.finish();
        });
        let Self { consumer, commits, intake, .. } = self;
        commits.end();
        // They must not outlive the client.
        drop(intake);
        drop(consumer);
        session.mailbox.finish();
    }

    /// Lets the client call back, and no more.
    fn serve(&mut self) {
        if self.intake.serve() {
            self.begin_anew_soon(&[], true);
        }
    }

    /// Tries for a while.
    fn commit_all(&mut self) {
        let deadline = Instant::now() + LAST_COMMITS;
        while Instant::now() < deadline && self.session.is_dirty() && !self.is_repairing() {
            if !self.committing && Instant::now() >= self.not_before {
                self.commit();
            }
            self.session.sleep(Duration::from_millis(5));
            self.take_outcome();
            self.serve();
        }
    }

    fn give_back(&mut self) {
        self.session.unstart_all();
        let unseen = self.session.mailbox.take_back(|_| true);
        self.session.unstart(unseen);
    }
}

fn subscribe(consumer: &BaseConsumer<Group>, options: &KafkaOptions) -> KafkaResult<()> {
    consumer.subscribe(&[options.config.topic.as_str(), options.retry_topic().as_str()])
}

fn consumer(options: &KafkaOptions) -> rdkafka::ClientConfig {
    let mut consumer = options.client();
    consumer
        .set("group.id", &options.config.group_id)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("partition.assignment.strategy", "cooperative-sticky")
        // What is read from where is said with the assignment.
        .set("auto.offset.reset", "error")
        .set("topic.metadata.refresh.interval.ms", "5000")
        .set("isolation.level", "read_committed")
        .set("session.timeout.ms", options.session_timeout.as_millis().to_string())
        // The thread polls whatever handlers do. This is how long others are waited for in a rebalance, and for its end.
        .set("max.poll.interval.ms", options.session_timeout.max(REBALANCE).as_millis().to_string())
        .set("heartbeat.interval.ms", (options.session_timeout / 5).as_millis().to_string())
        .set("fetch.wait.max.ms", "200")
        .set("fetch.error.backoff.ms", "100")
        // How much each partition's queue holds.
        .set("queued.min.messages", "20000")
        .set("queued.max.messages.kbytes", "2048")
        .set("fetch.queue.backoff.ms", "10")
        .set("fetch.message.max.bytes", "1048576")
        .set("allow.auto.create.topics", "false");
    consumer
}
