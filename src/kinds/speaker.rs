//! A model that is spoken to: one with weights here, through its chat template if it has one, or an endpoint.
//!
//! Kinds that read what a model says (a writer of principles, a judge) need not know which it is. Answers are remembered
//! row by row as they come, so that an interrupted run repeats no call that was finished.

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::policy::{Answer, Ask, Policy, Rows, Work, space};
use super::{Cx, NodeError};
use crate::digest::{Digest, Hasher};
use crate::endpoint::{self, Calling, Client, Conversation, Endpoint, EndpointError, Fault, Reply, Settings};
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
        Ok(Self::Endpoint(Box::new(RemoteSpeaker { id: input.id, endpoint, calling })))
    }

    /// Whether it is called over HTTP.
    pub(super) fn is_endpoint(&self) -> bool {
        matches!(self, Self::Endpoint(_))
    }

    /// The model itself, if its weights are here: for who wants log-probabilities.
    pub(super) fn local(&mut self) -> Option<&mut LocalSpeaker> {
        match self {
            Self::Local(local) => Some(local),
            Self::Endpoint(_) => None,
        }
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
        let whole = match &say.system {
            Some(system) => format!("{system}\n\n{}", say.user),
            None => say.user.clone(),
        };
        let Some(chat) = &self.chat else { return Ok(whole) };
        let user = |content: &str| Message { role: "user", content: content.to_owned() };
        let rendered = match &say.system {
            Some(system) => chat
                .render(&[Message { role: "system", content: system.clone() }, user(&say.user)])
                .or_else(|_| chat.render(&[user(&whole)])),
            None => chat.render(&[user(&whole)]),
        };
        rendered.map_err(|error| {
            let what =
                format!("what is said for row `{}` cannot be put into the form of a conversation: {error}", say.row);
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
        let ask = |say: &Say| Ok(Ask { row: say.row.clone(), prompt: local.prompt(say)?, seed: say.seed });
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
        let space = space("speak", &[&remote.id], &json!(settings));
        let key = |say: &Say| {
            let mut hasher = Hasher::new();
            hasher.number(u64::from(say.system.is_some())).text(say.system.as_deref().unwrap_or_default());
            hasher.text(&say.user).number(say.seed).finish()
        };
        let keys: Vec<Digest> = says.iter().map(key).collect();
        let client = &*remote;
        let rows: Rows<Remembered> = self.remembered(&space, &keys, |missing, keeper| {
            let key = client.calling.key(&client.endpoint)?;
            let client = Client::new(&client.endpoint, &client.calling, key);
            let sent = Settings {
                max_new_tokens: settings.max_new_tokens,
                temperature: settings.temperature,
                top_p: settings.top_p,
                stop: settings.stop.clone(),
            };
            for (place, at) in missing.iter().enumerate() {
                let Say { system, user, seed, .. } = says[*at].clone();
                let reply = client.call(&Conversation { system, user, seed }, &sent).map_err(|fault| match fault {
                    Fault::Never(error) => error,
                    Fault::Again { what, .. } => {
                        let (model, url) = (client.model().to_owned(), client.url().to_owned());
                        EndpointError::GaveUp { model, tries: 1, what, url }
                    }
                })?;
                keeper.take(std::iter::once((place, remembered(reply, &settings.stop))))?;
                keeper.keep()?;
            }
            Ok(())
        })?;
        Ok(Rows { values: rows.values.into_iter().map(|row| row.answer).collect(), reused: rows.reused })
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
