//! What this machine can do at most: multiply-adds, int8 products, reading and copying memory.
//!
//! Kernels are judged as a fraction of these, measured in the same run with as many threads, because both
//! cores and memory are often shared. The pairing of limit and kernel is in `report.rs`.

use memmap2::MmapMut;
use std::hint::black_box;
use std::sync::{Barrier, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A bound that some kernel runs into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    /// f32 multiply-adds in registers, two operations each.
    Fma,
    /// Products of u8 and i8 summed in i32 in registers (VNNI), two operations each.
    Int8,
    /// Bytes read from memory that no cache holds.
    Read,
    /// Bytes read and bytes written by a copy of memory that no cache holds.
    Copy,
}

impl Limit {
    /// How it is called in the summary.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Limit::Fma => "f32 FMA peak",
            Limit::Int8 => "VNNI peak",
            Limit::Read => "read bandwidth",
            Limit::Copy => "copy bandwidth",
        }
    }

    /// What a rate of 10⁹ a second is called.
    pub(crate) fn unit(self) -> &'static str {
        match self {
            Limit::Fma => "GFLOP/s",
            Limit::Int8 => "GOP/s",
            Limit::Read | Limit::Copy => "GB/s",
        }
    }
}

/// Rounds of sixteen independent vector operations: about 10 ms at 2.5 GHz with two units.
const ROUNDS: u64 = 3_000_000;
/// All the memory that is walked over: several times the largest L3 cache there is to expect.
const MEMORY: usize = 1 << 29;
/// What one measurement walks over; the next one goes on behind it.
const WINDOW: usize = 1 << 27;

/// Measures limits; owns the memory it walks over.
pub(crate) struct Limits {
    memory: Option<MmapMut>,
    next: usize,
}

impl Limits {
    /// Nothing measured, no memory taken yet.
    pub(crate) fn new() -> Self {
        Self { memory: None, next: 0 }
    }

    /// The rate of `limit` on so many threads, a second; `None` where this processor has no such instructions.
    pub(crate) fn measure(&mut self, limit: Limit, threads: usize) -> Option<f64> {
        let (amount, took) = match limit {
            Limit::Fma => registers(threads, fma())?,
            Limit::Int8 => registers(threads, int8()?)?,
            Limit::Read | Limit::Copy => self.walk(limit, threads),
        };
        Some(amount / took.as_secs_f64())
    }

    fn walk(&mut self, limit: Limit, threads: usize) -> (f64, Duration) {
        let memory = self.memory.get_or_insert_with(|| {
            let mut memory =
                MmapMut::map_anon(MEMORY).unwrap_or_else(|error| panic!("512 MiB to walk over: {error}"));
            // As the backend does for its own memory.
            #[cfg(target_os = "linux")]
            let _ = memory.advise(memmap2::Advice::HugePage);
            // Untouched pages are one page of zeros, and that is in the cache.
            memory.fill(1);
            memory
        });
        let window = &mut memory[self.next..self.next + WINDOW];
        self.next = (self.next + WINDOW) % MEMORY;
        let share = WINDOW / threads;
        let shares: Vec<Mutex<&mut [u8]>> =
            window.chunks_exact_mut(share).take(threads).map(Mutex::new).collect();
        let took = together(threads, |thread| {
            let mut bytes = shares[thread].lock().unwrap_or_else(PoisonError::into_inner);
            match limit {
                Limit::Copy => {
                    let half = bytes.len() / 2;
                    let (from, to) = bytes.split_at_mut(half);
                    to[..half].copy_from_slice(from);
                }
                _ => {
                    black_box(read(&bytes));
                }
            }
        });
        ((share * threads) as f64, took)
    }
}

/// Runs `work` on so many threads at once: from the first that starts to the last that ends.
fn together(threads: usize, work: impl Fn(usize) + Sync) -> Duration {
    let barrier = Barrier::new(threads);
    let run = |thread| {
        barrier.wait();
        let start = Instant::now();
        work(thread);
        (start, Instant::now())
    };
    let run = &run;
    let spans: Vec<(Instant, Instant)> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|thread| scope.spawn(move || run(thread))).collect();
        workers.into_iter().filter_map(|worker| worker.join().ok()).collect()
    });
    let first = spans.iter().map(|span| span.0).min();
    let last = spans.iter().map(|span| span.1).max();
    first.zip(last).map_or(Duration::ZERO, |(first, last)| last - first)
}

/// A loop in registers, and the operations of one of its rounds.
type Loop = (fn(u64) -> f32, u64);

fn registers(threads: usize, (rounds, operations): Loop) -> Option<(f64, Duration)> {
    let took = together(threads, |_| {
        black_box(rounds(black_box(ROUNDS)));
    });
    Some(((ROUNDS * operations) as f64 * threads as f64, took))
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx512f")]
    pub(super) fn fma_512(rounds: u64) -> f32 {
        let (factor, step) = (_mm512_set1_ps(0.999_999), _mm512_set1_ps(1e-7));
        let mut sums = [_mm512_set1_ps(1.0); 16];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, factor, step);
            }
        }
        sums.into_iter().map(|sum| _mm512_reduce_add_ps(sum)).sum()
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn fma_256(rounds: u64) -> f32 {
        let (factor, step) = (_mm256_set1_ps(0.999_999), _mm256_set1_ps(1e-7));
        let mut sums = [_mm256_set1_ps(1.0); 12];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, factor, step);
            }
        }
        sums.into_iter().map(|sum| _mm256_cvtss_f32(sum)).sum()
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    pub(super) fn vnni(rounds: u64) -> f32 {
        let (a, b) = (_mm512_set1_epi8(3), _mm512_set1_epi8(2));
        let mut sums = [_mm512_setzero_si512(); 16];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, a, b);
            }
        }
        sums.into_iter().map(|sum| _mm512_reduce_add_epi32(sum) as f32).sum()
    }

    #[target_feature(enable = "avx512f")]
    pub(super) fn read_512(bytes: &[u8]) -> u64 {
        let mut sums = [_mm512_setzero_si512(); 8];
        for line in bytes.as_chunks::<512>().0 {
            for (i, sum) in sums.iter_mut().enumerate() {
                // SAFETY: eight vectors of 64 bytes lie in the 512 bytes of `line`.
                let vector = unsafe { _mm512_loadu_si512(line.as_ptr().add(64 * i).cast()) };
                *sum = _mm512_xor_si512(*sum, vector);
            }
        }
        sums.into_iter().map(|sum| _mm512_reduce_add_epi64(sum) as u64).fold(0, u64::wrapping_add)
    }
}

fn fma() -> Loop {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has AVX-512 F.
            return (|rounds| unsafe { x86::fma_512(rounds) }, 16 * 32);
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the processor has AVX2 and FMA.
            return (|rounds| unsafe { x86::fma_256(rounds) }, 12 * 16);
        }
    }
    (fma_portable, 2 * 64)
}

/// Multiply and add as the compiler vectorises them for the baseline target.
fn fma_portable(rounds: u64) -> f32 {
    let mut sums = [1.0f32; 64];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = *sum * 0.999_999 + 1e-7;
        }
    }
    sums.into_iter().sum()
}

fn int8() -> Option<Loop> {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni") {
        // SAFETY: the processor has AVX-512 F and VNNI.
        return Some((|rounds| unsafe { x86::vnni(rounds) }, 16 * 128));
    }
    None
}

fn read(bytes: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the processor has AVX-512 F.
        return unsafe { x86::read_512(bytes) };
    }
    bytes.as_chunks::<8>().0.iter().map(|word| u64::from_ne_bytes(*word)).fold(0, u64::wrapping_add)
}
