"""Which TensorFlow errors mean that memory ran out: texts as users reported them, and texts that only look alike."""

from __future__ import annotations

import keras
import pytest

if keras.backend.backend() != "tensorflow":
    pytest.skip("for the TensorFlow backend", allow_module_level=True)

import tensorflow as tf

from memfit.backends.on_tensorflow.oom import is_out_of_memory

GPU = "/job:localhost/replica:0/task:0/device:GPU:0"
EXHAUSTED, INTERNAL, UNKNOWN = tf.errors.ResourceExhaustedError, tf.errors.InternalError, tf.errors.UnknownError

# Each with the issue that it was recorded in, where it is not from a run of the project.
MEMORY = [
    # Azure/MachineLearningNotebooks#880
    (
        EXHAUSTED,
        f"OOM when allocating tensor with shape[16,112,112,147] and type float on {GPU} by allocator GPU_0_bfc",
    ),
    # keras-team/keras#13376, through function calls
    (
        EXHAUSTED,
        f"2 root error(s) found.\n  (0) OOM when allocating tensor with shape[295,64,256,256] on {GPU}\n\t [[{{{{node a}}}}]]",
    ),
    # google/seq2seq#322
    (EXHAUSTED, "OOM when allocating tensor of shape [171164,200] and type float"),
    # the CPU's allocator under a resource limit
    (EXHAUSTED, "Graph execution error:\n\nOOM when allocating tensor with shape[256,148,148,32] by allocator mklcpu"),
    # faustomorales/keras-ocr#195
    (EXHAUSTED, "failed to allocate memory [Op:AddV2]"),
    # tensorflow/tensorflow#57620
    (EXHAUSTED, "Failed to allocate memory for the batch of component 0\n\t [[{{node IteratorGetNext}}]]"),
    # NVIDIA/DeepLearningExamples#405, XLA
    (EXHAUSTED, "Out of memory while trying to allocate 68852648264 bytes.\n\t [[{{node cluster_0_1/xla_run}}]]"),
    (INTERNAL, "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17179869184 bytes."),
    # experiencor/keras-yolo3#96, tensorflow/tensorflow#60401
    (INTERNAL, "Dst tensor is not initialized.\n\t [[Node: Tile_3/_4497 = _Recv[client_terminated=false]]"),
    (
        INTERNAL,
        f"Failed copying input tensor from CPU:0 to {GPU} in order to run _EagerConst: Dst tensor is not initialized.",
    ),
    # tensorflow/tensorflow#12237
    (INTERNAL, "failed to allocate 90.48M (94873600 bytes) from device: CUDA_ERROR_OUT_OF_MEMORY: out of memory"),
    (INTERNAL, "CUDA runtime implicit initialization on GPU:0 failed. Status: out of memory"),
    # tensorflow/tensorflow#7072
    (INTERNAL, "failed to create cublas handle: CUBLAS_STATUS_ALLOC_FAILED"),
    (EXHAUSTED, "cuda_malloc_async_allocator: cuMemAllocAsync failed to allocate 4294967296 bytes: out of memory"),
    (EXHAUSTED, "MemoryError: Unable to allocate 8.00 GiB for an array with shape (1073741824,) and data type float64"),
]

LOOK_ALIKES = [
    # tensorflow/tensorboard#1202, flwrlabs/flower#3006
    (EXHAUSTED, "Received message larger than max (6561349 vs. 4194304)"),
    (EXHAUSTED, "Sent message larger than max (544715979 vs. 536870912)"),
    # google-research/meta-dataset#24, tensorflow/tensorflow#4350
    (EXHAUSTED, "/dataset/records/quickdraw/73.tfrecords; Too many open files"),
    (EXHAUSTED, "./model/model-49.tempstate5787507096018461664"),
    (EXHAUSTED, "/mnt/logs/events.out.tfevents; Disk quota exceeded"),
    (EXHAUSTED, "/mnt/logs/events.out.tfevents; No space left on device"),
    # tensorflow/tensorflow#36781: a missing library says the same
    (INTERNAL, "Blas GEMM launch failed : a.shape=(32, 116032), b.shape=(116032, 256), m=32, n=256, k=116032"),
    (UNKNOWN, "Failed to get convolution algorithm. This is probably because cuDNN failed to initialize."),
    (UNKNOWN, "RuntimeError: the label of row 3 is 'out of memory'"),
    (tf.errors.InvalidArgumentError, "Incompatible shapes: [32,10] vs. [32,12]"),
    (tf.errors.InvalidArgumentError, "ValueError: row 3 says OOM when allocating tensor"),
    (tf.errors.NotFoundError, "/data/out of memory.csv; No such file or directory"),
]


@pytest.mark.parametrize(("kind", "message"), MEMORY)
def test_recorded_texts_are_recognised(kind, message):
    assert is_out_of_memory(kind(None, None, message))


@pytest.mark.parametrize(("kind", "message"), LOOK_ALIKES)
def test_look_alikes_are_not(kind, message):
    assert not is_out_of_memory(kind(None, None, message))


@pytest.mark.parametrize(
    "error",
    [
        ValueError("OOM when allocating tensor with shape[3]"),
        RuntimeError("the text says: out of memory"),
        OSError(24, "Too many open files"),
        KeyboardInterrupt(),
    ],
)
def test_other_errors_that_quote_one_are_not(error):
    assert not is_out_of_memory(error)


def test_memory_error_of_python_is():
    assert is_out_of_memory(MemoryError())


def test_cause_and_context_are_followed():
    inner = EXHAUSTED(None, None, "OOM when allocating tensor with shape[3]")
    caused, during, hidden = RuntimeError("training failed"), RuntimeError("while cleaning up"), RuntimeError("other")
    caused.__cause__, during.__context__ = inner, inner
    hidden.__context__, hidden.__suppress_context__ = inner, True

    assert is_out_of_memory(caused)
    assert is_out_of_memory(during)
    assert not is_out_of_memory(hidden)
    assert is_out_of_memory(ExceptionGroup("several", [ValueError("a"), caused]))


def test_chain_that_ends_in_itself_ends():
    first, second = ValueError("a"), ValueError("b")
    first.__context__, second.__context__ = second, first

    assert not is_out_of_memory(first)


def test_real_failed_allocation_is_recognised():
    with pytest.raises(tf.errors.OpError) as caught:
        tf.zeros((2**50,), "float32")

    assert is_out_of_memory(caught.value)
