//! The processes of a run: one, or several ranks of MPI that share the work of each step.
//!
//! Every rank reads the same base, rows and settings, and so knows the whole of every step. The step's micro-batches are
//! dealt out in turns; what is exchanged is their gradients. Each rank adds up all gradients in the order of the
//! micro-batches, as one process does, and takes the same optimizer step: adapters stay the same bits on all ranks.

use crate::error::Result;

#[cfg(feature = "mpi")]
use mpi::traits::{Communicator, CommunicatorCollectives};

/// The most bytes of a message: MPI counts in 31 bits.
#[cfg(feature = "mpi")]
const MESSAGE: usize = 1 << 28;

/// Variables that launchers of MPI set for each process, with the number of processes.
const SIZES: [&str; 3] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"];

/// Variables with the number of the process among those on the same machine.
const LOCAL: [&str; 3] = ["OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID"];

/// This process among those of a run.
pub struct Ranks {
    rank: usize,
    size: usize,
    #[cfg(feature = "mpi")]
    world: Option<World>,
    #[cfg(test)]
    threads: Option<std::sync::Arc<threads::Meeting>>,
}

#[cfg(feature = "mpi")]
struct World {
    communicator: mpi::topology::SimpleCommunicator,
    /// Ends MPI when it is dropped, after the communicator.
    _universe: mpi::environment::Universe,
}

/// The number that the first of some variables of the environment has.
fn of_environment(names: &[&str]) -> Option<usize> {
    names.iter().find_map(|name| std::env::var(name).ok()?.parse().ok())
}

impl Ranks {
    /// One process.
    pub fn alone() -> Self {
        Self {
            rank: 0,
            size: 1,
            #[cfg(feature = "mpi")]
            world: None,
            #[cfg(test)]
            threads: None,
        }
    }

    /// This process among those that `mpirun` or `srun` started; alone without them.
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`] for several processes in a program without the feature `mpi`, and where MPI can't be
    /// started.
    pub fn of_launcher() -> Result<Self> {
        let size = of_environment(&SIZES).unwrap_or(1);
        if size <= 1 {
            return Ok(Self::alone());
        }
        Self::started(size)
    }

    #[cfg(not(feature = "mpi"))]
    fn started(size: usize) -> Result<Self> {
        let finding =
            crate::error::Finding::new("", "processes of MPI").expected("one: this program was built without MPI");
        Err(finding.found(size).hint("build it with the feature mpi").unsupported())
    }

    #[cfg(feature = "mpi")]
    fn started(size: usize) -> Result<Self> {
        let refused = |found: &str| {
            let finding = crate::error::Finding::new("", "MPI").expected(format_args!("{size} processes"));
            finding
                .found(found)
                .hint("start all processes with one mpirun or srun of the MPI it was built with")
                .unsupported()
        };
        let (universe, _) = mpi::initialize_with_threading(mpi::Threading::Funneled)
            .ok_or_else(|| refused("MPI that doesn't start"))?;
        let communicator = universe.world();
        let (rank, found) = (communicator.rank(), communicator.size());
        if usize::try_from(found) != Ok(size) {
            return Err(refused(&format!("{found}")));
        }
        let world = Some(World { communicator, _universe: universe });
        Ok(Self { rank: usize::try_from(rank).unwrap_or(0), size, world, ..Self::alone() })
    }

    /// The number of this process among those of a launcher on the same machine, from 0: which of its GPUs it takes.
    pub fn on_this_machine() -> usize {
        of_environment(&LOCAL).unwrap_or(0)
    }

    /// The number of this process, from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// The number of processes.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Whether this process writes files and reports events.
    pub fn is_first(&self) -> bool {
        self.rank == 0
    }

    /// Every rank's `values`, which have the same length on all, in the order of ranks.
    pub(super) fn gathered(&self, values: &[u8]) -> Vec<Vec<u8>> {
        #[cfg(feature = "mpi")]
        if let Some(World { communicator, .. }) = &self.world {
            let mut all = vec![Vec::with_capacity(values.len()); self.size];
            for part in values.chunks(MESSAGE / self.size) {
                let mut parts = vec![0u8; part.len() * self.size];
                communicator.all_gather_into(part, &mut parts[..]);
                all.iter_mut().zip(parts.chunks_exact(part.len())).for_each(|(all, part)| all.extend(part));
            }
            return all;
        }
        #[cfg(test)]
        if let Some(meeting) = &self.threads {
            return meeting.gathered(self.rank, values);
        }
        vec![values.to_vec()]
    }

    /// Whether `flag` is set on any rank.
    pub(super) fn any(&self, flag: bool) -> bool {
        self.gathered(&[u8::from(flag)]).iter().any(|of_rank| of_rank == &[1])
    }

    /// Ends all processes of the run with this exit code: the others would wait for this one for ever.
    pub fn abort(&self, _code: i32) {
        #[cfg(feature = "mpi")]
        if let Some(World { communicator, .. }) = &self.world {
            communicator.abort(_code);
        }
    }
}

/// Ranks that are threads of one process, for tests without MPI.
#[cfg(test)]
pub(super) mod threads {
    use std::sync::{Arc, Barrier, Mutex};

    use super::Ranks;

    /// Where threads exchange values.
    pub(super) struct Meeting {
        barrier: Barrier,
        values: Mutex<Vec<Vec<u8>>>,
    }

    impl Meeting {
        pub(super) fn gathered(&self, rank: usize, values: &[u8]) -> Vec<Vec<u8>> {
            self.values.lock().unwrap()[rank] = values.to_vec();
            self.barrier.wait();
            let all = self.values.lock().unwrap().clone();
            assert!(all.iter().all(|of_rank| of_rank.len() == values.len()), "messages of one length");
            self.barrier.wait();
            all
        }
    }

    /// Runs `work` on `size` ranks, and returns what each gives.
    #[allow(clippy::needless_update, reason = "with the feature `mpi` there is another field")]
    pub(in crate::train) fn on<T: Send>(size: usize, work: impl Fn(&Ranks) -> T + Sync) -> Vec<T> {
        let meeting = Arc::new(Meeting { barrier: Barrier::new(size), values: Mutex::new(vec![Vec::new(); size]) });
        std::thread::scope(|scope| {
            let start = |rank: usize| {
                let (meeting, work) = (Some(meeting.clone()), &work);
                scope.spawn(move || work(&Ranks { rank, size, threads: meeting, ..Ranks::alone() }))
            };
            let threads: Vec<_> = (0..size).map(start).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }
}
