//! A model that is spoken to: one with weights here, through its chat template if it has one, or an endpoint.
//!
//! Kinds that read what a model says (a writer of principles, a judge) need not know which it is. Answers are remembered
//! row by row as they come, so that an interrupted run repeats no call that was finished.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::memo::{Space, note};
use super::policy::{Answer, Ask, Policy, Rows, Work};
use super::{Cx, NodeError};
use crate::digest::{Digest, Hasher};
use crate::endpoint::{
    self, Calling, Client, Conversation, End, Endpoint, EndpointError, Estimate, Payer, Purse, Reply, Settings, Tally,
    ask_all,
};
use crate::lm::{ChatTemplate, Finish, LmError, Message, SamplingSettings};
use crate::pipeline::ArtifactType;

/// What an input field accepts that takes a model to speak to.
pub(super) const SPEAKERS: &[ArtifactType] = &[ArtifactType::Model, ArtifactType::Endpoint];

/// A model that is spoken to.
pub(super) enum Speaker {
    /// Its weights are here.
    Local(Box<LocalSpeaker>),
    /// It is called over HTTP.
    Endpoint(Box<RemoteSpeaker>),
}

/// A model with weights, and the form of its conversations.
pub(super) struct LocalSpeaker {
    policy: Policy,
    chat: Option<ChatTemplate>,
}

/// An endpoint.
pub(super) struct RemoteSpeaker {
    id: Digest,
    endpoint: Endpoint,
    calling: Calling,
    /// Made with the first call: until then no key is needed.
    client: Option<Client>,
    tally: Tally,
    /// Answers that were asked for, remembered ones among them.
    asked: u64,
    purse: Arc<Purse>,
    /// The field that it is the model of.
    path: String,
}

/// One conversation of one turn.
#[derive(Debug, Clone)]
pub(super) struct Say {
    /// The row it is for, for messages.
    pub(super) row: String,
    /// A system message.
    pub(super) system: Option<String>,
    /// What the user says.
    pub(super) user: String,
    /// Seed of the answer's random numbers. Equal conversations of equal seeds are asked once; who wants another answer to
    /// the same words gives another seed.
    pub(super) seed: u64,
}

/// How answers are sampled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct SpeakSettings {
    /// Tokens of an answer at most.
    pub(super) max_new_tokens: usize,
    /// 0 is greedy.
    pub(super) temperature: f64,
    /// Share of the probability that is sampled from; 1 is all.
    pub(super) top_p: f64,
    /// Texts that end an answer; not part of it.
    pub(super) stop: Vec<String>,
}

/// An answer of an endpoint as it is remembered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Remembered {
    answer: Answer,
    prompt_tokens: u64,
}

impl Speaker {
    /// The model of an input field. Nothing is loaded or called yet.
    pub(super) fn open(cx: &Cx<'_>, path: &str) -> Result<Self, NodeError> {
        let input = cx.input(path)?;
        let Some(file) = input.files.get(endpoint::FILE) else {
            let chat = match ChatTemplate::load(&input.files) {
                Ok(template) => Some(template),
                Err(LmError::NoChatTemplate) => None,
                Err(error) => return Err(error.into()),
            };
            return Ok(Self::Local(Box::new(LocalSpeaker { policy: Policy::new(cx, input), chat })));
        };
        let endpoint = serde_json::from_slice(&fs_err::read(file)?)
            .map_err(|error| EndpointError::Malformed { what: error.to_string() })?;
        let calling = input.calling.clone().unwrap_or_default();
        Ok(Self::Endpoint(Box::new(RemoteSpeaker {
            id: input.id,
            endpoint,
            calling,
            client: None,
            tally: cx.part.calls(path),
            asked: 0,
            purse: Arc::clone(&cx.purse),
            path: path.to_owned(),
        })))
    }

    /// Whether it is called over HTTP.
    pub(super) fn is_endpoint(&self) -> bool {
        matches!(self, Self::Endpoint(_))
    }

    /// What was called for so far, as metrics whose names begin with `prefix`: `calls` (answered in this attempt), `calls_reused`
    /// (answers that were there, or that several rows share), `retries`, `prompt_tokens` and `completion_tokens` as the server
    /// counts them, `cost` where there is a price. None of a model with weights here.
    pub(super) fn metrics(&self, prefix: &str) -> Map<String, Value> {
        match self {
            Self::Local(_) => Map::new(),
            Self::Endpoint(remote) => remote.metrics(prefix),
        }
    }

    /// The model itself, if its weights are here: for who wants log-probabilities.
    pub(super) fn local(&mut self) -> Option<&mut LocalSpeaker> {
        match self {
            Self::Local(local) => Some(local),
            Self::Endpoint(_) => None,
        }
    }
}

impl RemoteSpeaker {
    fn metrics(&self, prefix: &str) -> Map<String, Value> {
        let Tally { calls, retries, prompt_tokens, completion_tokens } = self.tally;
        let mut metrics = vec![
            ("calls", json!(calls)),
            ("calls_reused", json!(self.asked.saturating_sub(calls))),
            ("retries", json!(retries)),
            ("prompt_tokens", json!(prompt_tokens)),
            ("completion_tokens", json!(completion_tokens)),
        ];
        metrics.extend(self.calling.price.map(|price| ("cost", json!(price.of(prompt_tokens, completion_tokens)))));
        metrics.into_iter().map(|(name, value)| (format!("{prefix}{name}"), value)).collect()
    }
}

impl LocalSpeaker {
    /// The model.
    pub(super) fn policy(&mut self) -> &mut Policy {
        &mut self.policy
    }

    /// The text that the model goes on from: the conversation in the form of its chat template; without one, what is said as
    /// plain text, the system message first. A template that refuses system messages gets it as the user's first words.
    pub(super) fn prompt(&self, say: &Say) -> Result<String, NodeError> {
        say.as_prompt(self.chat.as_ref())
    }
}

impl Say {
    fn conversation(&self) -> Conversation {
        Conversation { system: self.system.clone(), user: self.user.clone(), seed: self.seed }
    }

    fn as_prompt(&self, chat: Option<&ChatTemplate>) -> Result<String, NodeError> {
        let whole = match &self.system {
            Some(system) => format!("{system}\n\n{}", self.user),
            None => self.user.clone(),
        };
        let Some(chat) = chat else { return Ok(whole) };
        let user = |content: &str| Message { role: "user", content: content.to_owned() };
        let rendered = match &self.system {
            Some(system) => chat
                .render(&[Message { role: "system", content: system.clone() }, user(&self.user)])
                .or_else(|_| chat.render(&[user(&whole)])),
            None => chat.render(&[user(&whole)]),
        };
        rendered.map_err(|error| {
            let what =
                format!("what is said for row `{}` cannot be put into the form of a conversation: {error}", self.row);
            NodeError::failed(what)
        })
    }
}

impl Work<'_, '_> {
    /// Says something to a model for each row, and returns what it answers.
    pub(super) fn speak(
        &mut self,
        speaker: &mut Speaker,
        settings: &SpeakSettings,
        says: &[Say],
    ) -> Result<Rows<Answer>, NodeError> {
        match speaker {
            Speaker::Local(local) => self.speak_here(local, settings, says),
            Speaker::Endpoint(remote) => self.call(remote, settings, says),
        }
    }

    fn speak_here(
        &mut self,
        local: &mut LocalSpeaker,
        settings: &SpeakSettings,
        says: &[Say],
    ) -> Result<Rows<Answer>, NodeError> {
        let ask =
            |say: &Say| Ok(Ask { row: say.row.clone(), prompt: local.prompt(say)?, seed: say.seed, continues: false });
        let asks: Vec<Ask> = says.iter().map(ask).collect::<Result<_, NodeError>>()?;
        let SpeakSettings { max_new_tokens, temperature, top_p, stop } = settings.clone();
        let settings = SamplingSettings { max_new_tokens, temperature, top_k: 0, top_p, stop };
        self.sample(&mut local.policy, &settings, &asks)
    }

    fn call(
        &mut self,
        remote: &mut RemoteSpeaker,
        settings: &SpeakSettings,
        says: &[Say],
    ) -> Result<Rows<Answer>, NodeError> {
        let space = Space::called("speak", &remote.id, &remote.endpoint.model, json!(settings));
        let key = |say: &Say| {
            let mut hasher = Hasher::new();
            hasher.number(u64::from(say.system.is_some())).text(say.system.as_deref().unwrap_or_default());
            hasher.text(&say.user).number(say.seed).finish()
        };
        let keys: Vec<Digest> = says.iter().map(key).collect();
        let RemoteSpeaker { endpoint, calling, client, tally, asked, purse, path, .. } = remote;
        let cancel = self.cancel();
        let told = |at: usize| note(&says[at].user);
        let rows: Rows<Remembered> = self.remembered(&space, &keys, told, |missing, keeper| {
            let client = match client {
                Some(client) => client,
                None => {
                    let payer = Payer { purse: Arc::clone(purse), judge: path == "judge", price: calling.price };
                    client.insert(Client::new(endpoint, calling, calling.key(endpoint)?).paid_by(payer))
                }
            };
            let sent = Settings {
                max_new_tokens: settings.max_new_tokens,
                temperature: settings.temperature,
                top_p: settings.top_p,
                stop: settings.stop.clone(),
            };
            let said: Vec<Conversation> = missing.iter().map(|at| says[*at].conversation()).collect();
            let estimate = Estimate::of(&said, settings.max_new_tokens);
            let cost = calling.price.map(|price| estimate.cost(&price));
            let cost = cost.map(|cost| format!(", which costs up to {cost:.*}", if cost < 1.0 { 4 } else { 2 }));
            let known = says.len() - missing.len();
            tracing::info!("{}: {estimate}{}; {known} more are remembered", client.model(), cost.unwrap_or_default());
            let mut fault = None;
            let (made, end) = ask_all(client, calling, said, &sent, cancel, &mut |place, reply| {
                let taken = keeper.take(std::iter::once((place, remembered(reply, &settings.stop))));
                // Each is paid for: none waits for others to be kept with.
                let kept = keeper.keep();
                fault = fault.take().or(kept.and(taken).err());
                fault.is_none()
            });
            *tally = tally.and(made);
            keeper.called(path, made);
            match (fault, end) {
                (Some(fault), _) => Err(fault),
                (None, End::Failed { at, error }) => Err(named(error, &says[missing[at]].row)),
                (None, End::Stopped) => Err(NodeError::Interrupted),
                (None, End::Done) => Ok(()),
            }
        })?;
        *asked += says.len() as u64;
        Ok(Rows { values: rows.values.into_iter().map(|row| row.answer).collect(), reused: rows.reused })
    }
}

/// What went wrong with a call; where the server did not like what it was sent, the row is named.
fn named(error: EndpointError, row: &str) -> NodeError {
    match &error {
        EndpointError::Refused { status: 400 | 413 | 422, .. } => {
            let help = error.diagnostic().help.into_iter().next();
            NodeError::Failed { what: format!("row `{row}`: {error}"), help }
        }
        _ => error.into(),
    }
}

/// A reply as it is kept: up to a stop text, should the server not have heeded it.
fn remembered(reply: Reply, stop: &[String]) -> Remembered {
    let Reply { mut text, finish, prompt_tokens, completion_tokens } = reply;
    let stopped = stop.iter().filter_map(|stop| text.find(stop.as_str())).min();
    let finish = match (stopped, finish.as_str()) {
        (Some(at), _) => {
            text.truncate(at);
            Finish::Stop
        }
        (None, "length") => Finish::Length,
        (None, _) => Finish::Eos,
    };
    Remembered { answer: Answer { text, tokens: completion_tokens as usize, finish }, prompt_tokens }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn prompt(template: Option<&str>, system: Option<&str>) -> Result<String, String> {
        let chat = template.map(|text| ChatTemplate::new(text, BTreeMap::new()).expect("parses"));
        let say = Say { row: "r7".to_owned(), system: system.map(str::to_owned), user: "why?".to_owned(), seed: 0 };
        say.as_prompt(chat.as_ref()).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_said_takes_the_form_that_the_model_knows() {
        assert_eq!(prompt(None, None).as_deref(), Ok("why?"));
        assert_eq!(prompt(None, Some("be brief")).as_deref(), Ok("be brief\n\nwhy?"));
        let plain = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>";
        assert_eq!(prompt(Some(plain), Some("be brief")).as_deref(), Ok("<system>be brief<user>why?<assistant>"));
        let strict = format!(
            "{{% if messages[0].role == 'system' %}}{{{{ raise_exception('no system') }}}}{{% endif %}}{plain}"
        );
        assert_eq!(prompt(Some(&strict), Some("be brief")).as_deref(), Ok("<user>be brief\n\nwhy?<assistant>"));
        let error = prompt(Some("{{ raise_exception('never') }}"), None).expect_err("it refuses");
        assert!(error.contains("row `r7`") && error.contains("never"), "{error}");
    }

    #[test]
    fn an_answer_ends_at_a_stop_text_and_says_why() {
        let reply = |text: &str, finish: &str| {
            let (text, finish) = (text.to_owned(), finish.to_owned());
            let reply = Reply { text, finish, prompt_tokens: 9, completion_tokens: 4 };
            remembered(reply, &["##".to_owned(), "\n\n".to_owned()])
        };
        let kept = reply("a\n\nb ## c", "stop");
        let answer = Answer { text: "a".to_owned(), tokens: 4, finish: Finish::Stop };
        assert_eq!(kept, Remembered { answer, prompt_tokens: 9 });
        assert_eq!(reply("a", "stop").answer.finish, Finish::Eos);
        assert_eq!(reply("a", "length").answer.finish, Finish::Length);
        assert_eq!(reply("", "content_filter").answer.finish, Finish::Eos);
    }

    #[test]
    fn the_row_is_named_that_a_server_does_not_like() {
        let refused = |status| EndpointError::Refused {
            model: "m".to_owned(),
            status,
            said: ": too long".to_owned(),
            url: String::new(),
        };
        assert!(named(refused(400), "r7").to_string().contains("row `r7`: the endpoint of `m` answered 400: too long"));
        assert!(!named(refused(401), "r7").to_string().contains("r7"));
    }
}
