//! Kills at moments that nobody chose.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_survives_kills_at_random_moments() {
    let (mut stage, mut relay) = Stage::set().await;
    let began = tokio::time::Instant::now();
    let wish = stage.rotation(reason("how long it takes"));
    let (signer, held) = (stage.world.issuer.signer(), &stage.held);
    carry_through(signer, &mut stage.alice, &mut stage.bob, &wish, held).await;
    let usual = began.elapsed();
    stage.well(&relay, &wish, "undisturbed").await;

    let seed = std::env::var("KEYTURN_TEST_SEED").map_or_else(
        |_| {
            let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
            since.as_secs() ^ u64::from(since.subsec_nanos()) << 32
        },
        |seed| seed.parse().unwrap(),
    );
    println!("KEYTURN_TEST_SEED={seed}; one rotation takes {usual:?}");
    let mut random = SplitMix(seed);
    for round in 0..RANDOM_ROUNDS {
        let delays = [(); 2].map(|()| usual.mul_f64(random.fraction()));
        let at = format!("seed {seed}, round {round}, killed after {delays:?}");
        println!("{at}");
        let wish = stage.rotation(reason("random"));
        let Stage {
            world,
            judge,
            held,
            alice,
            bob,
            current,
            ..
        } = &mut stage;
        let admins = carry_through(world.issuer.signer(), alice, bob, &wish, held);
        let operator = async {
            for delay in delays {
                tokio::time::sleep(delay).await;
                relay.kill();
                judge.consistent(*current, &wish.id, held, &at).await;
                relay = world.relay().await;
            }
            relay
        };
        let (_, again) = join!(admins, operator);
        relay = again;
        stage.well(&relay, &wish, &at).await;
    }
}

/// Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014: enough to choose moments, and a seed repeats them.
struct SplitMix(u64);

impl SplitMix {
    /// Evenly in 0 … 1.
    fn fraction(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        f64::from((mixed >> 32) as u32) / f64::from(u32::MAX)
    }
}
