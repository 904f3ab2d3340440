//! Which examples a step takes, and how they are cut into passes that fit memory.

use std::ops::Range;

use super::super::random::Stream;
use super::super::{Config, Sequence};
use super::Example;

/// How much goes into a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    /// So many sequences.
    Sequences(usize),
    /// So many tokens; a prompt counts once for all its responses.
    Tokens(usize),
}

impl Room {
    /// As many sequences as the user said, or as many tokens as suit the model: what a pass keeps of them is about
    /// 128 MiB, but for small and large models. A number that does not depend on the machine, as results depend on it, by
    /// rounding.
    pub(super) fn of(config: &Config, most: Option<usize>) -> Self {
        match most {
            Some(most) => Self::Sequences(most),
            None => Self::Tokens(((1 << 27) / kept_of_a_token(config)).clamp(1792, 4096) as usize),
        }
    }

    /// What of it some sequences take.
    fn taken_by(self, size: Size) -> usize {
        match self {
            Self::Sequences(_) => size.sequences,
            Self::Tokens(_) => size.tokens,
        }
    }

    fn all(self) -> usize {
        match self {
            Self::Sequences(all) | Self::Tokens(all) => all,
        }
    }
}

/// Bytes that a pass keeps of a token for the gradient.
pub(super) fn kept_of_a_token(config: &Config) -> u64 {
    let queries = config.num_attention_heads * config.head_dim;
    let keys = config.num_key_value_heads * config.head_dim;
    let experts = config.experts.as_ref().map_or(1, |experts| experts.num_experts_per_tok);
    let layer = 2 * config.hidden_size + 2 * queries + 2 * keys + 2 * experts * config.intermediate_size;
    (4 * config.num_hidden_layers as u64 * layer as u64).max(1)
}

/// The order of the examples: shuffled anew for each turn through all of them.
#[derive(Debug)]
pub(super) struct Order {
    count: usize,
    seed: u64,
    /// The turn that `indices` belongs to.
    turn: u64,
    indices: Vec<usize>,
}

impl Order {
    /// Of `count` examples, at least one. A function of the seed alone.
    pub(super) fn new(count: usize, seed: u64) -> Self {
        Self { count, seed, turn: 0, indices: turn(count, seed, 0) }
    }

    /// The examples of a step, from 0, in which every example comes up once before any comes up again.
    pub(super) fn batch(&mut self, step: u64, size: usize) -> Vec<usize> {
        let first = step * size as u64;
        (first..first + size as u64).map(|at| self.at(at)).collect()
    }

    /// The examples that come up in so many steps of a size, each once, by their indices.
    pub(super) fn taken(&mut self, steps: u64, size: usize) -> Vec<usize> {
        let places = steps.saturating_mul(size as u64);
        if places >= self.count as u64 {
            return (0..self.count).collect();
        }
        let mut taken: Vec<usize> = (0..places).map(|at| self.at(at)).collect();
        taken.sort_unstable();
        taken
    }

    fn at(&mut self, at: u64) -> usize {
        let (turn_of, within) = (at / self.count as u64, at % self.count as u64);
        if turn_of != self.turn {
            self.turn = turn_of;
            self.indices = turn(self.count, self.seed, turn_of);
        }
        self.indices[within as usize]
    }
}

fn turn(count: usize, seed: u64, turn: u64) -> Vec<usize> {
    let mut indices: Vec<usize> = (0..count).collect();
    Stream::new(seed, &format!("examples, turn {turn}")).shuffle(&mut indices);
    indices
}

/// What a pass over some sequences has to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) sequences: usize,
    /// A prompt that follows upon the same prompt is shared.
    pub(super) tokens: usize,
}

impl Size {
    pub(super) fn of<'a>(sequences: impl Iterator<Item = &'a Sequence>) -> Self {
        let mut size = Self::default();
        let mut before: &[u32] = &[];
        for Sequence { ids, prompt } in sequences {
            let this = &ids[..*prompt];
            size.sequences += 1;
            size.tokens += ids.len() - if this == before { *prompt } else { 0 };
            before = this;
        }
        size
    }
}

/// Cuts a step's examples in their order into runs that fit a pass. One that is too large by itself makes a run of its
/// own.
pub(super) fn examples_in_runs(examples: &[&Example], room: Room) -> Vec<Range<usize>> {
    runs(examples.iter().map(|example| Size::of(example.sequences.iter())), room)
}

/// The same of sequences; where tokens count, those of one prompt stay together if they fit a pass.
pub(super) fn sequences_in_runs(sequences: &[Sequence], room: Room) -> Vec<Range<usize>> {
    let Room::Tokens(tokens) = room else {
        return runs(sequences.iter().map(|sequence| Size::of(std::iter::once(sequence))), room);
    };
    let mut start = 0;
    let of_one_prompt = |one: &Sequence, other: &Sequence| one.ids[..one.prompt] == other.ids[..other.prompt];
    let groups: Vec<Range<usize>> = sequences
        .chunk_by(of_one_prompt)
        .flat_map(|group| {
            let prompt = group[0].prompt;
            // What is too large even so is cut, and its prompt read once for each part.
            let sizes = group.iter().map(|one| Size { sequences: 1, tokens: one.ids.len() - prompt });
            let cut = runs(sizes, Room::Tokens(tokens.saturating_sub(prompt)));
            let first = start;
            start += group.len();
            cut.into_iter().map(move |run| first + run.start..first + run.end)
        })
        .collect();
    // Where it takes several passes anyway, they may as well be small.
    let whole = Size::of(sequences.iter()).tokens <= tokens;
    let room = if whole { room } else { Room::Tokens(tokens / 2) };
    let of_groups = runs(groups.iter().map(|group| Size::of(sequences[group.clone()].iter())), room);
    of_groups.into_iter().map(|run| groups[run.start].start..groups[run.end - 1].end).collect()
}

fn runs(items: impl Iterator<Item = Size>, room: Room) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    let mut filled = 0;
    for (index, item) in items.enumerate() {
        let size = room.taken_by(item);
        match runs.last_mut() {
            Some(run) if filled + size <= room.all() => {
                run.end = index + 1;
                filled += size;
            }
            _ => {
                runs.push(index..index + 1);
                filled = size;
            }
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_example_once_before_any_again() {
        let mut order = Order::new(7, 3);
        let taken: Vec<usize> = (0..6).flat_map(|step| order.batch(step, 5)).take(28).collect();
        for turn in taken.chunks(7) {
            let mut turn = turn.to_vec();
            turn.sort_unstable();
            assert_eq!(turn, (0..7).collect::<Vec<_>>());
        }
        assert_ne!(taken[..7], taken[7..14], "each turn has its own order");
        assert_ne!(taken[..7], Order::new(7, 4).batch(0, 7)[..], "each seed has its own order");
        let mut first = taken[..6].to_vec();
        first.sort_unstable();
        assert_eq!((order.taken(2, 3), order.taken(3, 3)), (first, (0..7).collect()));
    }

    #[test]
    fn order_does_not_depend_on_what_was_asked_before() {
        let mut straight = Order::new(10, 1);
        let all: Vec<_> = (0..9).map(|step| straight.batch(step, 4)).collect();
        for (step, batch) in all.iter().enumerate() {
            assert_eq!(*batch, Order::new(10, 1).batch(step as u64, 4));
        }
        assert_eq!(straight.batch(2, 4), all[2]);
    }

    #[test]
    fn batch_larger_than_all_examples_goes_round() {
        let mut batch = Order::new(3, 0).batch(0, 7);
        batch.sort_unstable();
        assert!(batch.iter().filter(|example| **example == 0).count() >= 2, "{batch:?}");
        assert_eq!(batch.len(), 7);
    }

    #[test]
    fn runs_fit_and_lose_nothing() {
        let cut = |items: &[(usize, usize)], room| {
            runs(items.iter().map(|(sequences, tokens)| Size { sequences: *sequences, tokens: *tokens }), room)
        };
        assert_eq!(cut(&[(4, 10), (4, 10), (4, 10)], Room::Sequences(8)), [0..2, 2..3]);
        assert_eq!(cut(&[(4, 10), (9, 10), (4, 10)], Room::Sequences(8)), [0..1, 1..2, 2..3]);
        assert_eq!(cut(&[(1, 50), (1, 1), (1, 1)], Room::Tokens(50)), [0..1, 1..3]);
        assert_eq!(cut(&[(1, 150)], Room::Tokens(50)), vec![0..1]);
        assert!(cut(&[], Room::Tokens(50)).is_empty());
    }

    #[test]
    fn room_follows_the_model() {
        let of = |width, layers| {
            let config = Config {
                hidden_size: width,
                intermediate_size: 8 * width / 3,
                num_hidden_layers: layers,
                num_attention_heads: 4,
                num_key_value_heads: 4,
                head_dim: width / 4,
                ..Config::default()
            };
            Room::of(&config, None)
        };
        assert_eq!((of(128, 3), of(1024, 24)), (Room::Tokens(4096), Room::Tokens(1792)));
        assert_eq!(Room::of(&Config::default(), Some(3)), Room::Sequences(3));
    }

    fn sequence(prompt: u32, length: usize, response: usize) -> Sequence {
        Sequence { ids: vec![prompt; length + response], prompt: length }
    }

    #[test]
    fn responses_stay_with_their_prompt() {
        let cells = |prompts: u32, length, responses: usize, response| -> Vec<Sequence> {
            (0..prompts).flat_map(|prompt| (0..responses).map(move |_| sequence(prompt, length, response))).collect()
        };
        let room = Room::Tokens(1792);
        let four = cells(4, 200, 4, 60);
        assert_eq!(Size::of(four.iter()), Size { sequences: 16, tokens: 4 * 440 });
        assert_eq!(sequences_in_runs(&four, room), vec![0..16], "1,760 tokens fit");
        let eight = cells(8, 200, 8, 60);
        let of_one: Vec<_> = (0..8).map(|at| 8 * at..8 * (at + 1)).collect();
        assert_eq!(sequences_in_runs(&eight, room), of_one, "a constitution of 680 at a time");
        assert_eq!(sequences_in_runs(&eight, Room::Sequences(24)), [0..24, 24..48, 48..64]);
        let long = cells(2, 1000, 3, 300);
        assert_eq!(sequences_in_runs(&long, room), [0..2, 2..3, 3..5, 5..6], "cut where even one does not fit");
        let alone = [sequence(1, 3000, 10), sequence(2, 5, 5), sequence(3, 5, 5)];
        assert_eq!(sequences_in_runs(&alone, room), [0..1, 1..3]);
        let examples =
            [four, cells(1, 5, 1, 5), cells(2, 5, 2, 5)].map(|sequences| Example { id: String::new(), sequences });
        assert_eq!(examples_in_runs(&examples.each_ref(), room), [0..2, 2..3], "1,770 tokens, and 30 more");
        assert_eq!(examples_in_runs(&examples.each_ref(), Room::Sequences(5)), [0..1, 1..3]);
    }
}
