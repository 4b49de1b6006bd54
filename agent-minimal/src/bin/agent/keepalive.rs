//! When a connection that has gone quiet is asked for a sign of life: early where it used to speak often, and no more
//! often than whatever lies between us and the gateway demands.
//!
//! Two questions are asked with one Ping. *Is the gateway still there?* It challenges in a rhythm; a rhythm that stops is
//! looked after when two beats are missing. *Does the network still know this connection?* Many forget one that was idle
//! for a time of their own choosing. That time is searched for: longer after every answer, half as long after a
//! connection that did not live to answer.

use std::time::{Duration, Instant};

use protocol::limits;

/// How soon after the last word a rhythm may be missed.
const LEAST: Duration = Duration::from_secs(5);
/// Where the search begins: most networks keep an idle connection for minutes (RFC 5382 REQ-5 wants two hours).
const FIRST: Duration = Duration::from_secs(90);
/// No network that forgets sooner is fit for use.
const MIN: Duration = Duration::from_secs(20);
/// Often enough for whom nobody challenges.
const MAX: Duration = Duration::from_millis(limits::MAX_QUIET_MS);
/// How long a Ping may stay unanswered. At 600 ms and 30 % loss one in two hundred takes longer.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);
/// After a network has forgotten, it is tried for longer only after so many answers, since it may have been another cause:
/// twice as many each time, up to a day's.
const FIRST_DOUBT: u32 = 32;
const MOST_DOUBT: u32 = 4096;

/// How long the network between keeps a quiet connection, as far as is known. Outlives connections.
#[derive(Debug)]
pub(crate) struct Patience {
    quiet: Duration,
    /// Answers that are needed before a longer time is tried, and those still missing.
    doubt: u32,
    answers_needed: u32,
    /// The longest silence that ended, lately.
    beat: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { quiet: FIRST, doubt: 0, answers_needed: 1, beat: Duration::ZERO }
    }
}

impl Patience {
    /// How long the next silence may last.
    fn allowed(&self) -> Duration {
        self.quiet.min((self.beat * 2).max(LEAST))
    }

    fn held(&mut self) {
        self.answers_needed = self.answers_needed.saturating_sub(1);
        if self.answers_needed == 0 {
            self.quiet = (self.quiet + self.quiet / 2).min(MAX);
            self.answers_needed = self.doubt.max(1);
        }
    }

    fn forgot(&mut self) {
        self.quiet = (self.quiet / 2).max(MIN);
        self.doubt = (self.doubt * 2).clamp(FIRST_DOUBT, MOST_DOUBT);
        self.answers_needed = self.doubt;
    }
}

/// One connection's silence.
#[derive(Debug)]
pub(crate) struct Silence {
    heard: Instant,
    /// When a Ping was sent that nothing has followed yet, and whether after all the time that the network is given.
    asked: Option<(Instant, bool)>,
}

/// What a silence calls for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Action {
    /// Nothing, for so long.
    Wait(Duration),
    /// Send a Ping.
    Ask,
    /// The connection leads nowhere.
    GiveUp,
}

impl Silence {
    pub(crate) fn new(now: Instant) -> Self {
        Self { heard: now, asked: None }
    }

    /// Something was heard.
    pub(crate) fn heard(&mut self, now: Instant, patience: &mut Patience) {
        if let Some((_, true)) = self.asked.take() {
            patience.held();
        }
        // A beat that was longer is forgotten slowly: challenges and answers to Pings come at odd distances.
        patience.beat = now.duration_since(self.heard).max(patience.beat - patience.beat / 8);
        self.heard = now;
    }

    /// What there is to do.
    pub(crate) fn action(&self, now: Instant, patience: &Patience) -> Action {
        let (due, action) = match self.asked {
            None => (self.heard + patience.allowed(), Action::Ask),
            Some((at, _)) => (at + ANSWER_LIMIT, Action::GiveUp),
        };
        match due.saturating_duration_since(now) {
            Duration::ZERO => action,
            left => Action::Wait(left),
        }
    }

    /// A Ping was sent.
    pub(crate) fn asked(&mut self, now: Instant, patience: &Patience) {
        self.asked = Some((now, now.duration_since(self.heard) >= patience.quiet));
    }

    /// The connection was reset, or given up. After a long silence that is taken for the network's doing.
    pub(crate) fn broke(&self, now: Instant, patience: &mut Patience) {
        let until = self.asked.map_or(now, |(at, _)| at);
        if until.duration_since(self.heard) >= MIN {
            patience.forgot();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// A gateway that challenges in an interval behind a network that forgets a connection after some time.
    struct World {
        now: Instant,
        patience: Patience,
        interval: Option<Duration>,
        forgets_after: Duration,
    }

    /// What came of a connection.
    #[derive(Debug, Eq, PartialEq)]
    struct Life {
        pings: u32,
        lasted: Duration,
        broke: bool,
    }

    impl World {
        fn new(interval: Option<u64>, forgets_after: u64) -> Self {
            let forgets_after = SECOND * u32::try_from(forgets_after).unwrap();
            let interval = interval.map(Duration::from_secs);
            Self { now: Instant::now(), patience: Patience::default(), interval, forgets_after }
        }

        /// Lives through one connection, at most so long, second by second.
        fn connection(&mut self, most: Duration) -> Life {
            let (began, mut pings) = (self.now, 0);
            let mut silence = Silence::new(began);
            let (mut known_until, mut challenge) =
                (began + self.forgets_after, self.interval.map(|every| began + every));
            while self.now < began + most {
                self.now += SECOND;
                if challenge.is_some_and(|at| self.now >= at) {
                    challenge = self.interval.map(|every| self.now + every);
                    if self.now < known_until {
                        silence.heard(self.now, &mut self.patience);
                        known_until = self.now + self.forgets_after;
                    }
                }
                match silence.action(self.now, &self.patience) {
                    Action::Wait(_) => {}
                    Action::Ask => {
                        pings += 1;
                        silence.asked(self.now, &self.patience);
                        if self.now < known_until {
                            silence.heard(self.now, &mut self.patience);
                            known_until = self.now + self.forgets_after;
                        }
                    }
                    Action::GiveUp => {
                        silence.broke(self.now, &mut self.patience);
                        return Life { pings, lasted: self.now - began, broke: true };
                    }
                }
            }
            Life { pings, lasted: self.now - began, broke: false }
        }
    }

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn who_is_challenged_often_never_asks() {
        for interval in [1, 4] {
            assert_eq!(World::new(Some(interval), 3600).connection(HOUR).pings, 0, "{interval}");
        }
        // Until the rhythm is known, a longer one is asked after a few times.
        for interval in [10, 30, 60] {
            let life = World::new(Some(interval), 3600).connection(HOUR);
            assert!(life.pings <= 4 && !life.broke, "{interval}: {life:?}");
        }
    }

    #[test]
    fn who_is_never_challenged_asks_every_ten_minutes_in_the_end() {
        let mut world = World::new(None, 86_400);
        world.connection(HOUR);
        assert_eq!(world.patience.quiet, MAX);
        let life = world.connection(HOUR);
        assert!(life.pings <= 13 && !life.broke, "{life:?}");
    }

    #[test]
    fn the_time_after_which_a_network_forgets_is_found() {
        for forgets_after in [25, 45, 60, 100, 300, 500] {
            for interval in [None, Some(3000)] {
                let mut world = World::new(interval, forgets_after);
                let mut broken = 0;
                for _ in 0..8 {
                    broken += u32::from(world.connection(HOUR).broke);
                }
                let quiet = world.patience.quiet.as_secs();
                // Once it is known a longer time is tried ever more seldom, at the cost of a connection each.
                assert!(broken <= 6, "{broken} connections broke where the network forgets after {forgets_after} s");
                assert!((20..=900).contains(&quiet), "{quiet}");
            }
        }
    }

    #[test]
    fn a_gateway_that_has_vanished_is_noticed_by_the_rhythm_it_broke() {
        for (interval, most) in [(1, 21), (10, 36), (30, 76), (3000, 106)] {
            let mut silence = Silence::new(Instant::now());
            let patience = &mut Patience::default();
            let mut now = Instant::now();
            for _ in 0..3 {
                now += Duration::from_secs(interval);
                silence.heard(now, patience);
            }
            let vanished = now;
            loop {
                now += SECOND;
                match silence.action(now, patience) {
                    Action::Wait(left) => assert!(left <= FIRST),
                    Action::Ask => silence.asked(now, patience),
                    Action::GiveUp => break,
                }
            }
            assert!(now - vanished <= Duration::from_secs(most), "{interval}: {:?}", now - vanished);
        }
    }

    #[test]
    fn a_gateway_that_vanished_in_mid_sentence_says_nothing_about_the_network() {
        let (now, mut patience) = (Instant::now(), Patience::default());
        let mut silence = Silence::new(now);
        silence.broke(now + SECOND, &mut patience);
        assert_eq!(patience.quiet, FIRST, "it was not silent");
        silence.heard(now + SECOND, &mut patience);
        silence.asked(now + 6 * SECOND, &patience);
        silence.broke(now + 21 * SECOND, &mut patience);
        assert_eq!(patience.quiet, FIRST, "no network forgets after 5 s");
        silence.asked(now + 91 * SECOND, &patience);
        silence.broke(now + 106 * SECOND, &mut patience);
        assert_eq!(patience.quiet, FIRST / 2);
        for _ in 0..8 {
            patience.forgot();
        }
        assert_eq!(patience.quiet, MIN);
    }
}
