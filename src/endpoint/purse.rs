//! What a worker may spend on calls, and what it has spent. No call is begun that might pass the bound.

use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::{Conversation, Price, Reply};

/// What may be spent at most; without a number there is no bound.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Allowance {
    /// Requests to endpoints, tries again included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calls: Option<u64>,
    /// Those of them that ask a judge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub judge_calls: Option<u64>,
    /// By the endpoints' prices, in their currency.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dollars: Option<f64>,
}

/// What was spent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Spent {
    /// Requests that were begun.
    pub calls: u64,
    /// Those of them that asked a judge.
    pub judge_calls: u64,
    /// By the endpoints' prices; of a call that is under way what it may cost at most.
    pub dollars: f64,
    /// Tokens read and written, as the servers count.
    pub tokens: u64,
    /// Whether a call was not begun because it might have passed the bound.
    pub refused: bool,
}

/// Money in hand, shared by all calls of a worker.
#[derive(Debug, Default)]
pub struct Purse {
    allowance: Allowance,
    spent: Mutex<Spent>,
}

impl Purse {
    /// A purse with so much.
    pub fn new(allowance: Allowance) -> Self {
        Self { allowance, spent: Mutex::default() }
    }

    /// What was spent so far.
    pub fn spent(&self) -> Spent {
        *self.spent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, change: impl FnOnce(&mut Spent) -> T) -> T {
        change(&mut self.spent.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes what a call may cost; false, and nothing taken, if that is not there.
    fn take(&self, judge: bool, worst: f64) -> bool {
        self.with(|spent| {
            let Allowance { calls, judge_calls, dollars } = self.allowance;
            let enough = calls.is_none_or(|most| spent.calls < most)
                && (!judge || judge_calls.is_none_or(|most| spent.judge_calls < most))
                && dollars.is_none_or(|most| spent.dollars + worst <= most);
            if enough {
                spent.calls += 1;
                spent.judge_calls += u64::from(judge);
                spent.dollars += worst;
            } else {
                spent.refused = true;
            }
            enough
        })
    }
}

/// Who pays for the calls of a client.
#[derive(Debug, Clone)]
pub struct Payer {
    /// Out of which purse.
    pub purse: Arc<Purse>,
    /// Whether a judge is asked.
    pub judge: bool,
    /// What tokens cost.
    pub price: Option<Price>,
}

/// Tokens that a server's form of a conversation adds to what is said, at most.
const FORM_TOKENS: u64 = 256;

impl Payer {
    /// What a call costs at most. A token is a byte at least.
    fn worst(&self, said: &Conversation, max_new_tokens: usize) -> f64 {
        let bytes = said.user.len() + said.system.as_ref().map_or(0, String::len);
        self.price.map_or(0.0, |price| price.of(bytes as u64 + FORM_TOKENS, max_new_tokens as u64))
    }

    /// Pays for a call beforehand what it costs at most; returns that, or `None` if it is not there.
    pub(super) fn pay(&self, said: &Conversation, max_new_tokens: usize) -> Option<f64> {
        let worst = self.worst(said, max_new_tokens);
        self.purse.take(self.judge, worst).then_some(worst)
    }

    /// Takes back what was paid too much: nothing was used of a call that the server refused. One that broke off is left
    /// paid as it is.
    pub(super) fn settle(&self, paid: f64, reply: Option<&Reply>) {
        let (prompt, completion) = reply.map_or((0, 0), |reply| (reply.prompt_tokens, reply.completion_tokens));
        let cost = self.price.map_or(0.0, |price| price.of(prompt, completion));
        self.purse.with(|spent| {
            spent.dollars = (spent.dollars - paid + cost).max(0.0);
            spent.tokens += prompt + completion;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_spent_beyond_the_allowance_whoever_spends_at_once() {
        let spend = |allowance: Allowance| {
            let purse = Arc::new(Purse::new(allowance));
            let threads: Vec<_> = (0..8)
                .map(|thread| {
                    let purse = Arc::clone(&purse);
                    std::thread::spawn(move || (0..50).filter(|_| purse.take(thread % 2 == 0, 1.0)).count())
                })
                .collect();
            let taken: usize = threads.into_iter().map(|thread| thread.join().expect("ends")).sum();
            (taken as u64, purse.spent())
        };
        // 200 calls of judges and 200 others are tried. Which kind comes first is the scheduler's affair.
        let (taken, spent) = spend(Allowance { calls: Some(100), judge_calls: Some(30), dollars: None });
        assert_eq!((taken, spent.calls, spent.refused), (100, 100, true));
        assert!(spent.judge_calls <= 30, "{} calls of judges", spent.judge_calls);
        let (taken, spent) = spend(Allowance { calls: None, judge_calls: Some(30), dollars: None });
        assert_eq!((taken, spent.calls, spent.judge_calls, spent.refused), (230, 230, 30, true));
    }

    #[test]
    fn a_call_is_paid_for_at_its_worst_and_settled_at_its_price() {
        let purse = Arc::new(Purse::new(Allowance { dollars: Some(1.0), ..Allowance::default() }));
        let price = Some(Price { input: 1000.0, output: 2000.0 });
        let payer = Payer { purse: Arc::clone(&purse), judge: false, price };
        let said = Conversation { system: None, user: "x".repeat(144), seed: 0 };
        // 400 tokens read and 250 written, at most: 0.9.
        let paid = payer.pay(&said, 250).expect("enough");
        assert!((paid - 0.9).abs() < 1e-9 && payer.pay(&said, 250).is_none());
        payer.settle(paid, None);
        assert!(purse.spent().dollars.abs() < 1e-9 && payer.pay(&said, 250).is_some());
    }
}
