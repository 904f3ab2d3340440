use candle_core::Device;

use super::pick::{likeliest, pick};
use super::*;
use crate::lm::cpu::in_pool;
use crate::lm::decoder::Engine;
use crate::lm::gpu::kernels::emulation::with_kernels;
use crate::lm::random::Stream;
use crate::lm::{Config, TokenizerKind};

const WORDS: &str = "red green blue small large round cat dog bird runs sleeps sings";

fn tokenizer() -> Tokenizer {
    Tokenizer::train(TokenizerKind::Word, [WORDS], 100).unwrap()
}

fn model(eos: Vec<u32>) -> Model {
    let config = Config {
        vocab_size: 16,
        hidden_size: 24,
        intermediate_size: 32,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 12,
        rms_norm_eps: 1e-5,
        rope_theta: 1e4,
        max_position_embeddings: 40,
        tie_word_embeddings: false,
        bos_token_id: Some(1),
        eos_token_ids: eos,
        pad_token_id: None,
        ..Config::default()
    };
    Model::random(config, 5, &Device::Cpu).unwrap()
}

fn settings(temperature: f64) -> SamplingSettings {
    SamplingSettings { temperature, ..SamplingSettings::greedy(12) }
}

fn prompts() -> Vec<Prompt> {
    let prompt = |seed: u64| Prompt { ids: (0..=seed % 5).map(|at| 4 + (seed + at) as u32 % 12).collect(), seed };
    (0..30).map(prompt).collect()
}

fn run(prompts: &[Prompt], settings: &SamplingSettings) -> Vec<Response> {
    sample(&model(vec![2]), &tokenizer(), prompts, settings).unwrap()
}

#[test]
fn a_row_gives_the_same_text_in_every_batch() {
    let all = run(&prompts(), &settings(1.0));
    for (prompt, response) in prompts().iter().zip(&all) {
        assert_eq!(&run(std::slice::from_ref(prompt), &settings(1.0))[0], response);
    }
    let backwards: Vec<Prompt> = prompts().into_iter().rev().collect();
    assert!(run(&backwards, &settings(1.0)).iter().rev().eq(&all));
    // The same prompt with other seeds gives other texts.
    let same = |seed| Prompt { ids: vec![1, 4], seed };
    let texts: std::collections::BTreeSet<String> =
        run(&(0..20).map(same).collect::<Vec<_>>(), &settings(1.0)).into_iter().map(|response| response.text).collect();
    assert!(texts.len() > 15, "{texts:?}");
}

#[test]
fn the_likeliest_token_is_that_of_the_logits() {
    let model = model(vec![]);
    let responses = sample(&model, &tokenizer(), &prompts(), &settings(0.0)).unwrap();
    for (prompt, response) in prompts().iter().zip(responses) {
        let mut ids = prompt.ids.clone();
        for token in &response.ids {
            assert_eq!(likeliest(&model.next_logits(&[&ids]).unwrap()[0]), Some(*token));
            ids.push(*token);
        }
        match response.finish {
            Finish::Length => assert_eq!(ids.len(), prompt.ids.len() + 12),
            finish => assert_eq!((finish, likeliest(&model.next_logits(&[&ids]).unwrap()[0])), (Finish::Eos, Some(2))),
        }
    }
    for only_one in [SamplingSettings { top_k: 1, ..settings(1.0) }, SamplingSettings { top_p: 1e-9, ..settings(1.0) }]
    {
        assert_eq!(run(&prompts(), &only_one), run(&prompts(), &settings(0.0)));
    }
}

/// A device that picks takes the tokens that are picked here from its logits: with the same numbers, in the same order.
#[test]
fn a_device_picks_as_it_is_done_here() {
    let model = model(vec![2]);
    let model = Model::computed_by(Engine::Tensors, model.config().clone(), model.weights().clone()).unwrap();
    let run = |settings: &SamplingSettings| sample(&model, &tokenizer(), &prompts(), settings).unwrap();
    // The last cannot be picked there.
    let few = SamplingSettings { top_k: 3, ..settings(1.0) };
    for settings in [settings(0.0), settings(1.0), settings(0.6), few] {
        let here = run(&settings);
        // Kernels are emulated on one thread, which must be the one that samples.
        if let Some(there) = in_pool(|| with_kernels(|| run(&settings))) {
            assert_eq!(here, there, "{settings:?}");
        }
    }
}

/// Prompts that share one or two beginnings, some of them all of it.
fn sharing() -> Vec<Prompt> {
    let begin: Vec<u32> = (0..18).map(|at| 4 + at * 5 % 12).collect();
    let prompt = |seed: u64| {
        let more = (0..seed % 5).map(|at| 4 + (seed / 5 + at) as u32 % 12);
        let ids = begin.iter().copied().take(if seed.is_multiple_of(7) { 3 } else { 18 }).chain(more).collect();
        Prompt { ids, seed }
    };
    (0..40).map(prompt).collect()
}

#[test]
fn slots_and_shared_beginnings_change_nothing() {
    let (model, tokenizer) = (model(vec![2]), tokenizer());
    for temperature in [0.0, 1.0] {
        let settings = settings(temperature);
        let all = sample(&model, &tokenizer, &sharing(), &settings).unwrap();
        let lengths: std::collections::BTreeSet<usize> = all.iter().map(|response| response.ids.len()).collect();
        assert!(lengths.len() > 2, "rows leave at different times: {lengths:?}");
        for rows in [1, 3, 16] {
            let mut found: Vec<Option<Response>> = vec![None; 40];
            let mut calls = 0;
            sample_each(&model, &tokenizer, &sharing(), &settings, Limits { rows: Some(rows) }, |finished| {
                calls += 1;
                assert!(finished.len() <= rows);
                for (index, response) in finished {
                    assert!(found[index].replace(response).is_none(), "handed over once");
                }
                Ok::<_, LmError>(())
            })
            .unwrap();
            assert!(found.iter().flatten().eq(&all), "{rows} rows at a time");
            assert!(calls >= 40 / rows);
        }
        for (prompt, response) in sharing().iter().zip(&all).step_by(3) {
            assert_eq!(&run(std::slice::from_ref(prompt), &settings)[0], response);
        }
    }
}

#[test]
fn rows_in_work_stay_few_and_leave_as_they_finish() {
    let model = model(vec![2]);
    let mut seen = 0;
    let error = sample_each(&model, &tokenizer(), &sharing(), &settings(1.0), Limits { rows: Some(4) }, |finished| {
        seen += finished.len();
        if seen >= 10 { Err(LmError::Mismatch { what: "enough".to_owned() }) } else { Ok(()) }
    })
    .unwrap_err();
    assert!(error.to_string().contains("enough") && seen < 14, "{seen}");
}

#[test]
fn a_full_memory_halves_the_rows_and_changes_nothing() {
    let model = model(vec![2]);
    let all = sample(&model, &tokenizer(), &sharing(), &settings(1.0)).unwrap();
    let run = |bytes| {
        model.limit_buffers(Some(bytes));
        let mut finished = 0;
        let result = sample_each(&model, &tokenizer(), &sharing(), &settings(1.0), Limits::default(), |responses| {
            finished += responses.len();
            for (index, response) in responses {
                assert_eq!(response, all[index]);
            }
            Ok::<_, LmError>(())
        });
        model.limit_buffers(None);
        (finished, result)
    };
    let (mut whole, mut none) = (0, 0);
    for kib in (8..400).step_by(4) {
        match run(kib << 10) {
            (40, Ok(())) => whole += 1,
            (0, Err(LmError::RowOutOfMemory { .. } | LmError::OutOfMemory { .. })) => none += 1,
            (finished, result) => assert!(matches!(result, Err(LmError::RowOutOfMemory { .. })), "{finished}"),
        }
    }
    assert!(whole > 20 && none > 0, "{whole} limits were enough, {none} were not");
}

/// How often each token is picked, of many.
fn shares(settings: &SamplingSettings, logits: &[f32]) -> Vec<f64> {
    let mut counts = vec![0.0; logits.len()];
    for seed in 0..20_000 {
        counts[pick(settings, logits, &mut Stream::new(seed, "shares")).unwrap() as usize] += 1.0 / 20_000.0;
    }
    counts
}

fn close(shares: &[f64], wanted: &[f64]) {
    let worst = shares.iter().zip(wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(worst < 0.012, "{shares:?}, not {wanted:?}");
    let never = shares.iter().zip(wanted).all(|(share, wanted)| *wanted > 0.0 || *share == 0.0);
    assert!(never, "{shares:?}, not {wanted:?}");
}

#[test]
fn tokens_are_picked_as_often_as_they_are_likely() {
    // ln of 1, 4, 3 and 2 tenths, and something of no weight.
    let logits: Vec<f32> = [0.1f32, 0.4, 0.3, 0.2].iter().map(|p| p.ln() + 3.0).chain([f32::NEG_INFINITY]).collect();
    close(&shares(&settings(1.0), &logits), &[0.1, 0.4, 0.3, 0.2, 0.0]);
    close(&shares(&settings(0.5), &logits), &[1.0 / 30.0, 16.0 / 30.0, 9.0 / 30.0, 4.0 / 30.0, 0.0]);
    let top_k = SamplingSettings { top_k: 2, ..settings(1.0) };
    close(&shares(&top_k, &logits), &[0.0, 4.0 / 7.0, 3.0 / 7.0, 0.0, 0.0]);
    // 0.4 and 0.3 are less than 0.75 together, so 0.2 comes with them.
    let top_p = SamplingSettings { top_p: 0.75, ..settings(1.0) };
    close(&shares(&top_p, &logits), &[0.0, 4.0 / 9.0, 3.0 / 9.0, 2.0 / 9.0, 0.0]);
    let both = SamplingSettings { top_k: 2, top_p: 0.5, ..settings(1.0) };
    close(&shares(&both, &logits), &[0.0, 1.0, 0.0, 0.0, 0.0]);
    // All equal: the first ones stay.
    close(&shares(&top_k, &[0.0; 4]), &[0.5, 0.5, 0.0, 0.0]);
    close(&shares(&settings(1e-300), &logits), &[0.0, 1.0, 0.0, 0.0, 0.0]);
}

#[test]
fn an_end_token_ends_a_response_and_is_no_part_of_it() {
    let free = run(&prompts()[..1], &settings(1.0)).remove(0);
    let end = free.ids[4];
    let first = free.ids.iter().position(|id| *id == end).unwrap();
    let ended = sample(&model(vec![2, end]), &tokenizer(), &prompts()[..1], &settings(1.0)).unwrap().remove(0);
    assert_eq!((ended.ids.as_slice(), ended.finish), (&free.ids[..first], Finish::Eos));
    assert_eq!(ended.text, tokenizer().decode(&free.ids[..first]).unwrap());
}

#[test]
fn a_stop_text_ends_a_response_even_across_tokens() {
    let free = run(&prompts()[..1], &settings(1.0)).remove(0);
    let words: Vec<&str> = free.text.split(' ').collect();
    assert!(words.len() > 6, "{free:?}");
    // From the middle of the fourth word to the middle of the fifth.
    let stop = format!("{} {}", &words[3][1..], &words[4][..2]);
    let with = SamplingSettings { stop: vec!["nowhere".to_owned(), stop.clone()], ..settings(1.0) };
    let stopped = run(&prompts()[..1], &with).remove(0);
    let end = free.text.find(&stop).unwrap();
    assert_eq!((stopped.text.as_str(), stopped.finish), (&free.text[..end], Finish::Stop));
    let (last, before) = stopped.ids.split_last().unwrap();
    assert!(free.ids.starts_with(&stopped.ids), "all tokens are there, {last} too");
    assert!(!tokenizer().decode(before).unwrap().contains(&stop), "it ends as soon as the text is there");
}

#[test]
fn new_tokens_end_with_the_models_positions() {
    let prompt = |length: u32| Prompt { ids: (0..length).map(|at| 4 + at % 12).collect(), seed: 1 };
    let model = model(vec![]);
    let responses = sample(&model, &tokenizer(), &[prompt(37), prompt(3)], &settings(0.0)).unwrap();
    assert_eq!((responses[0].ids.len(), responses[0].finish), (3, Finish::Length));
    assert_eq!(responses[1].ids.len(), 12);
    let error = sample(&model, &tokenizer(), &[prompt(3), prompt(40)], &settings(0.0)).unwrap_err();
    assert!(matches!(error, LmError::TooLong { row: 1, tokens: 41, positions: 40 }), "{error}");
    let none = SamplingSettings { max_new_tokens: 0, ..settings(0.0) };
    assert_eq!(sample(&model, &tokenizer(), &[prompt(3)], &none).unwrap()[0].finish, Finish::Length);
    assert!(sample(&model, &tokenizer(), &[], &settings(0.0)).unwrap().is_empty());
}

#[test]
fn what_means_nothing_is_an_error() {
    let bad = |settings: SamplingSettings| {
        sample(&model(vec![]), &tokenizer(), &prompts(), &settings).unwrap_err().to_string()
    };
    assert!(bad(settings(-1.0)).contains("`temperature`"));
    assert!(bad(settings(f64::NAN)).contains("`temperature`"));
    assert!(bad(SamplingSettings { top_p: 0.0, ..settings(1.0) }).contains("`top_p`"));
    assert!(bad(SamplingSettings { stop: vec![String::new()], ..settings(1.0) }).contains("`stop`"));
    let with = |ids: Vec<u32>| {
        let prompts = [Prompt { ids: vec![4], seed: 0 }, Prompt { ids, seed: 0 }];
        sample(&model(vec![]), &tokenizer(), &prompts, &settings(0.0)).unwrap_err().to_string()
    };
    assert_eq!(with(vec![]), "row 1 is an empty prompt");
    assert_eq!(with(vec![3, 16]), "row 1 has the token 16, the model has 16");
}

#[test]
fn a_model_that_gives_no_numbers_is_an_error() {
    let sound = model(vec![]);
    let mut weights = sound.weights().clone();
    let norm = weights.get_mut("model.norm.weight").unwrap();
    *norm = (&*norm * f64::NAN).unwrap();
    let broken = Model::frozen(sound.config().clone(), weights.clone()).unwrap();
    let there = Model::computed_by(Engine::Tensors, sound.config().clone(), weights).unwrap();
    for temperature in [0.0, 1.0] {
        let error = |model| sample(model, &tokenizer(), &prompts(), &settings(temperature)).unwrap_err().to_string();
        assert!(error(&broken).contains("not numbers"));
        let there = in_pool(|| with_kernels(|| error(&there)));
        assert!(there.is_none_or(|error| error.contains("not numbers")));
    }
}
