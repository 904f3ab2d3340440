//! Calls to endpoints: what is sent, and what becomes of a server that fails, lies, hangs or is overrun.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sami::endpoint::{
    Calling, Client, Conversation, End, Endpoint, EndpointError, Key, Reply, Settings, Tally, ask_all,
};
use serde_json::{Map, Value, json};

use super::endpoint_server::{Act, Call, Server};

fn endpoint(server: &Server) -> Endpoint {
    Endpoint { model: "tiny".to_owned(), base_url: server.base_url.clone(), extra: Map::new(), omit: vec![] }
}

fn settings() -> Settings {
    Settings { max_new_tokens: 20, temperature: 0.5, top_p: 0.9, stop: vec!["##".to_owned()] }
}

fn say(user: &str) -> Conversation {
    Conversation { system: None, user: user.to_owned(), seed: 1 }
}

/// Asks so many questions, `0`, `1` and so on.
fn ask(server: &Server, calling: &Calling, count: usize) -> (Vec<Option<Reply>>, Tally, End) {
    let client = Client::new(&endpoint(server), calling, None);
    let said = (0..count).map(|at| say(&at.to_string())).collect();
    let mut replies = vec![None; count];
    let never = AtomicBool::new(false);
    let (tally, end) = ask_all(&client, calling, said, &settings(), &never, &mut |at, reply| {
        assert!(replies[at].replace(reply).is_none(), "an answer came twice");
        true
    });
    (replies, tally, end)
}

/// One call at a time, and one more try.
fn careful() -> Calling {
    Calling { concurrency: 1, retries: 1, timeout: 5.0, ..Calling::default() }
}

/// A server that does this at the first call and answers well from then on.
fn once(act: Act) -> Server {
    Server::start(move |call| if call.number == 0 { act.clone() } else { Act::say("fine") })
}

fn always(act: Act) -> Server {
    Server::start(move |_| act.clone())
}

#[test]
fn a_request_says_what_was_asked_for_and_no_more() {
    let server = always(Act::say("yes"));
    let mut endpoint = endpoint(&server);
    let key = Key::new("sk-secret");
    let client = Client::new(&endpoint, &careful(), key.clone());
    let said = Conversation { system: Some("be brief".to_owned()), user: "why?".to_owned(), seed: 7 };
    let reply = client.call(&said, &settings()).expect("an answer");
    assert_eq!((reply.text.as_str(), reply.finish.as_str()), ("yes", "stop"));
    assert_eq!((reply.prompt_tokens, reply.completion_tokens), (10, 1));
    let call = &server.calls()[0];
    assert_eq!(call.path, "/v1/chat/completions");
    assert_eq!(call.header("authorization"), Some("Bearer sk-secret"));
    let messages = json!([{"role": "system", "content": "be brief"}, {"role": "user", "content": "why?"}]);
    let body = json!({"model": "tiny", "messages": messages, "max_tokens": 20, "temperature": 0.5, "top_p": 0.9,
        "seed": 7, "stop": ["##"]});
    assert_eq!(call.body, body);

    endpoint.extra = json!({"top_k": 0}).as_object().cloned().expect("a table");
    endpoint.omit = vec!["top_p".to_owned(), "seed".to_owned(), "stop".to_owned()];
    let calling = Calling { max_tokens_field: "max_completion_tokens".to_owned(), ..careful() };
    let plain = Settings { stop: Vec::new(), ..settings() };
    Client::new(&endpoint, &calling, None).call(&say("why?"), &plain).expect("an answer");
    let call = &server.calls()[1];
    assert_eq!(call.header("authorization"), None);
    let body = json!({"model": "tiny", "messages": [{"role": "user", "content": "why?"}], "max_completion_tokens": 20,
        "temperature": 0.5, "top_k": 0});
    assert_eq!(call.body, body);
}

#[test]
fn what_may_pass_is_tried_again() {
    let acts = [
        Act::error(429, "slow down"),
        Act::error(500, "oops"),
        Act::error(502, "oops"),
        Act::Status(503, "", "<html>busy</html>".to_owned()),
        Act::error(504, "oops"),
        Act::Half,
        Act::Drop,
        Act::Body("no JSON".to_owned()),
        Act::Body("{\"choices\": []}".to_owned()),
        Act::Body("{\"error\": {\"message\": \"with status 200\"}}".to_owned()),
        Act::Body("{\"choices\": [{\"message\": {\"content\": null}, \"finish_reason\": \"stop\"}]}".to_owned()),
        Act::Body("{\"choices\": [{\"message\": {\"content\": 7}}]}".to_owned()),
        Act::Body(String::new()),
    ];
    // Each waits for its second try: all at once.
    std::thread::scope(|scope| {
        for act in acts {
            scope.spawn(move || {
                let server = once(act.clone());
                let (replies, tally, end) = ask(&server, &careful(), 1);
                assert_eq!(end, End::Done, "{act:?}");
                assert_eq!(replies[0].as_ref().map(|reply| reply.text.as_str()), Some("fine"), "{act:?}");
                assert_eq!((tally.calls, tally.retries, server.calls().len()), (1, 1, 2), "{act:?}");
            });
        }
    });
}

#[test]
fn what_never_passes_is_told_at_once() {
    for (act, says) in [
        (Act::error(400, "bad field top_p"), "answered 400: bad field top_p"),
        (Act::error(401, "who are you"), "answered 401: who are you"),
        (Act::error(403, "not you"), "answered 403: not you"),
        (Act::error(404, "no such model"), "answered 404: no such model"),
        (Act::Status(422, "", "{\"detail\": \"no\"}".to_owned()), "answered 422: no"),
        (Act::Status(301, "location: https://elsewhere/v1", String::new()), "it leads to https://elsewhere/v1"),
        (
            Act::Status(429, "", "{\"error\": {\"code\": \"insufficient_quota\", \"message\": \"pay\"}}".to_owned()),
            "pay",
        ),
        (Act::Status(404, "", "x".repeat(5000)), "xxx"),
    ] {
        let server = always(act.clone());
        let (_, tally, end) = ask(&server, &careful(), 3);
        let End::Failed { at: 0, error } = end else { panic!("{act:?}: {end:?}") };
        let text = error.to_string();
        assert!(text.contains(says) && text.contains("`tiny`") && text.chars().count() < 400, "{text}");
        assert!(!error.diagnostic().help.is_empty());
        assert_eq!((tally.calls, server.calls().len()), (0, 1), "{act:?}: one call at a time, none after a refusal");
    }
}

#[test]
fn a_server_that_stays_bad_is_given_up() {
    let server = always(Act::Body("prose".to_owned()));
    let (_, tally, end) = ask(&server, &careful(), 1);
    let End::Failed { at: 0, error: error @ EndpointError::GaveUp { tries: 2, .. } } = end else { panic!("{end:?}") };
    assert!(error.to_string().contains("in 2 tries") && error.to_string().contains("prose"), "{error}");
    assert_eq!((tally.retries, server.calls().len()), (1, 2));
    // Nobody is there at all.
    let mut gone = always(Act::Drop);
    gone.base_url = "http://127.0.0.1:9/v1".to_owned();
    let (_, _, end) = ask(&gone, &Calling { retries: 0, ..careful() }, 1);
    assert!(matches!(end, End::Failed { error: EndpointError::GaveUp { tries: 1, .. }, .. }), "{end:?}");
    let (_, _, end) = ask(&gone, &Calling { retries: 50, ..careful() }, 1);
    assert!(matches!(end, End::Failed { error: EndpointError::GaveUp { tries: 3, .. }, .. }), "{end:?}");
}

#[test]
fn a_call_takes_no_longer_than_it_may() {
    let server = once(Act::Hang);
    let begin = Instant::now();
    let (replies, ..) = ask(&server, &Calling { timeout: 0.4, ..careful() }, 1);
    assert_eq!(replies[0].as_ref().map(|reply| reply.text.as_str()), Some("fine"));
    assert!((0.4..3.0).contains(&begin.elapsed().as_secs_f64()), "{:?}", begin.elapsed());
}

#[test]
fn a_servers_wish_to_be_left_alone_is_heeded_by_all() {
    let server = once(Act::Status(429, "retry-after: 1", "{}".to_owned()));
    let begin = Instant::now();
    let (replies, ..) = ask(&server, &careful(), 2);
    assert!(replies.iter().all(Option::is_some));
    assert!((1.0..4.0).contains(&begin.elapsed().as_secs_f64()), "{:?}", begin.elapsed());
}

#[test]
fn calls_are_made_at_once_but_not_too_many() {
    let server = Server::start(|call| Act::Late(Duration::from_millis(100), call.user().to_owned()));
    let begin = Instant::now();
    let (replies, tally, end) = ask(&server, &Calling { concurrency: 8, ..careful() }, 16);
    assert_eq!((end, tally.calls), (End::Done, 16));
    for (at, reply) in replies.iter().enumerate() {
        assert_eq!(reply.as_ref().map(|reply| reply.text.clone()), Some(at.to_string()), "answers are not mixed up");
    }
    assert!(begin.elapsed() < Duration::from_millis(1300), "not one after the other: {:?}", begin.elapsed());
    let limited = Calling { concurrency: 8, requests_per_minute: Some(600), ..careful() };
    let begin = Instant::now();
    ask(&server, &limited, 16);
    // Ten at once, as the first second brings, and the rest one by one.
    assert!(begin.elapsed() >= Duration::from_millis(550), "{:?}", begin.elapsed());
    // Who asks in several goes has one limit for all of them.
    let client = Client::new(&endpoint(&server), &Calling { requests_per_minute: Some(120), ..careful() }, None);
    let begin = Instant::now();
    for _ in 0..4 {
        let never = AtomicBool::new(false);
        ask_all(&client, &careful(), vec![say("again")], &settings(), &never, &mut |_, _| true);
    }
    assert!(begin.elapsed() >= Duration::from_millis(950), "{:?}", begin.elapsed());
}

#[test]
fn an_interrupt_keeps_what_is_under_way_and_begins_nothing() {
    let server = Server::start(|call| Act::Late(Duration::from_millis(200), call.user().to_owned()));
    let calling = Calling { concurrency: 3, ..careful() };
    let client = Client::new(&endpoint(&server), &calling, None);
    let cancel = AtomicBool::new(false);
    let mut kept = 0;
    let said = (0..50).map(|at| say(&at.to_string())).collect();
    let (tally, end) = ask_all(&client, &calling, said, &settings(), &cancel, &mut |_, _| {
        kept += 1;
        cancel.store(kept >= 4, Ordering::Relaxed);
        true
    });
    assert_eq!(end, End::Stopped);
    assert_eq!((kept, tally.calls), (server.calls().len(), kept as u64), "each call that was made is kept");
    assert!((4..=9).contains(&kept), "{kept}");
    // A pause does not keep it up either.
    let busy = always(Act::Status(429, "retry-after: 300", "{}".to_owned()));
    let client = Client::new(&endpoint(&busy), &calling, None);
    let begin = Instant::now();
    let (_, end) = std::thread::scope(|scope| {
        cancel.store(false, Ordering::Relaxed);
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(300));
            cancel.store(true, Ordering::Relaxed);
        });
        ask_all(&client, &calling, vec![say("a")], &settings(), &cancel, &mut |_, _| true)
    });
    assert_eq!(end, End::Stopped);
    assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
}

#[test]
fn answers_come_in_more_forms_than_one() {
    let reply = |body: Value| {
        let server = always(Act::Body(body.to_string()));
        let client = Client::new(&endpoint(&server), &careful(), None);
        client.call(&say("12345678"), &settings()).expect("an answer")
    };
    let choice = |message: Value, finish: &str| json!({"choices": [{"message": message, "finish_reason": finish}]});
    let parts = json!({"content": [{"type": "thinking", "thinking": []}, {"type": "text", "text": "yes"}]});
    assert_eq!(reply(choice(parts, "stop")).text, "yes");
    assert_eq!(reply(choice(json!({"content": null, "refusal": "I cannot"}), "stop")).text, "I cannot");
    // Cut off in its thoughts.
    let cut = reply(choice(json!({"content": null}), "length"));
    assert_eq!((cut.text.as_str(), cut.finish.as_str()), ("", "length"));
    assert_eq!((cut.prompt_tokens, cut.completion_tokens), (2, 0), "no usage: estimated");
    assert_eq!(reply(choice(json!({"content": ""}), "stop")).text, "", "to say nothing is an answer");
}

#[test]
fn a_key_that_a_server_gives_back_is_not_passed_on() {
    let server = Server::start(|call: &Call| {
        Act::error(401, &format!("bad: {}", call.header("authorization").unwrap_or_default()))
    });
    let client = Client::new(&endpoint(&server), &careful(), Key::new("sk-secret"));
    let fault = format!("{:?} {client:?}", client.call(&say("x"), &settings()).expect_err("refused"));
    assert!(fault.contains("bad: Bearer …") && !fault.contains("sk-secret"), "{fault}");
}
