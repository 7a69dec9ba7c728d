//! Reloads that have been asked for: at most one is under way, those asked for meanwhile are one more.

/// The askers of reloads, who are told the outcome.
#[derive(Debug)]
pub struct Reloads<A> {
    /// The askers of the reload under way. `None`: none is.
    running: Option<Vec<A>>,
    /// Askers since then: it may have read the file before they changed it, so theirs is the next reload.
    waiting: Vec<A>,
}

impl<A> Default for Reloads<A> {
    fn default() -> Self {
        Reloads {
            running: None,
            waiting: Vec::new(),
        }
    }
}

impl<A> Reloads<A> {
    /// Notes that `asker` wants one. True: begin it now.
    #[must_use]
    pub fn ask(&mut self, asker: A) -> bool {
        if self.running.is_some() {
            self.waiting.push(asker);
            return false;
        }
        self.running = Some(vec![asker]);
        true
    }

    /// The one under way is done: whom its outcome is for, and whether to begin another now.
    #[must_use]
    pub fn done(&mut self) -> (Vec<A>, bool) {
        let answered = self.running.take().unwrap_or_default();
        let again = !self.waiting.is_empty();
        if again {
            self.running = Some(std::mem::take(&mut self.waiting));
        }
        (answered, again)
    }

    /// All who wait, for a goodbye.
    pub fn take_all(&mut self) -> Vec<A> {
        let mut askers = self.running.take().unwrap_or_default();
        askers.append(&mut self.waiting);
        askers
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn several_asked_for_meanwhile_are_one() {
        let mut reloads = Reloads::default();
        assert!(reloads.ask(1));
        assert!(!reloads.ask(2));
        assert!(!reloads.ask(3));
        assert_eq!(reloads.done(), (vec![1], true));
        assert!(!reloads.ask(4));
        assert_eq!(reloads.done(), (vec![2, 3], true));
        assert_eq!(reloads.done(), (vec![4], false));
        assert!(reloads.ask(5));
        assert!(!reloads.ask(6));
        assert_eq!(reloads.take_all(), [5, 6]);
        assert!(reloads.ask(7));
    }

    proptest! {
        /// Each asker is answered once, by a reload that began after it had asked.
        #[test]
        fn each_gets_the_outcome_that_covers_it(steps in prop::collection::vec(any::<bool>(), 0..200)) {
            let mut reloads = Reloads::default();
            // When each asked, and when the reload under way began.
            let (mut asked, mut began, mut answered) = (0_usize, None, 0_usize);
            let step = |moment: usize, asks: bool, reloads: &mut Reloads<(usize, usize)>,
                            asked: &mut usize, began: &mut Option<usize>, answered: &mut usize| {
                if asks {
                    if reloads.ask((*asked, moment)) {
                        assert!(began.is_none());
                        *began = Some(moment);
                    }
                    *asked += 1;
                } else if let Some(begun) = *began {
                    let (askers, again) = reloads.done();
                    for (number, when) in askers {
                        assert_eq!(number, *answered);
                        assert!(when <= begun);
                        *answered += 1;
                    }
                    *began = again.then_some(moment);
                }
            };
            for (moment, &asks) in steps.iter().enumerate() {
                step(moment, asks, &mut reloads, &mut asked, &mut began, &mut answered);
            }
            for moment in steps.len()..steps.len() + 2 {
                step(moment, false, &mut reloads, &mut asked, &mut began, &mut answered);
            }
            prop_assert_eq!(answered, asked);
            prop_assert!(reloads.take_all().is_empty());
        }
    }
}
