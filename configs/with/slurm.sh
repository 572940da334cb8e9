#!/bin/bash
# A SLURM job that trains until it is done, over as many time limits and preemptions as it takes.
# Submit:  sbatch configs/with/slurm.sh          (from the checkout, or the folder that holds your configs and data)
# Stop:    scancel JOB                           (saves, ends with code 143, is not requeued)
#SBATCH --job-name=cdpm
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4        # one task per GPU; num_nodes and devices of the overlay must agree
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@120          # 120 s before the limit: save at the next step, requeue
#SBATCH --requeue                  # a preempted or failed node starts the job again
#SBATCH --open-mode=append         # one log over all its lives
#SBATCH --output=%x_%j.log
# For several seeds at once: #SBATCH --array=0-4, and --name=cdpm_$SLURM_ARRAY_TASK_ID
# --seed_everything=$SLURM_ARRAY_TASK_ID below; every task of the array is requeued on its own.

export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
export SRUN_CPUS_PER_TASK=$OMP_NUM_THREADS  # since SLURM 22.05 `srun` gives a task one CPU unless told otherwise

# `srun` starts the tasks, hands them the signals, and ends all when one fails. --ckpt_path last continues the run of
# the same --name, or starts it. With --config configs/with/wandb.yaml the W&B run goes on under the same id.
exec srun --kill-on-bad-exit=1 python -m lit_medgen fit \
    --config configs/cdpm.yaml --config configs/with/slurm.yaml \
    --ckpt_path last "$@"
