"""Times greedy generation of atombank and of llama.cpp, in turn, in one run.

    python benches/generation.py ATOMBANK_BINARY MODEL.gguf [MODEL.gguf ..] [--tokens 64] [--rounds 5] [--threads 2]

Needs xllamacpp, which is llama.cpp. Each round runs both programs anew, for one token and for --tokens more; the
difference of the best times of both is the time of those, so that loading and the prompt don't count. Printed are the
tokens per second of the best round of each, and their ratio.
"""
import argparse
import json
import os
import subprocess
import sys
import time

PROMPT = "a b c d e f g h i j k l m n o p"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("models", nargs="+")
    for name, default in [("tokens", 64), ("rounds", 5), ("threads", 2)]:
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--llama-cpp-child", action="store_true")
    return parser.parse_args()


def atombank(args, model):
    """Seconds for one token, and for --tokens more."""
    times = []
    for tokens in (1, args.tokens + 1):
        started = time.perf_counter()
        subprocess.run([args.binary, "generate", model, "--prompt", PROMPT, "--max-tokens", str(tokens), "--ignore-eos",
                        "--json"], check=True, stdout=subprocess.DEVNULL,
                       env={**os.environ, "RAYON_NUM_THREADS": str(args.threads)})
        times.append(time.perf_counter() - started)
    return times


def llama_cpp_child(args):
    import xllamacpp
    params = xllamacpp.CommonParams()
    params.model.path = args.models[0]
    params.n_ctx, params.n_parallel, params.n_gpu_layers, params.warmup, params.fit_params = 512, 1, 0, True, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = args.threads
    server = xllamacpp.Server(params)
    answer = server.handle_completions({"prompt": PROMPT, "n_predict": args.tokens, "temperature": 0, "ignore_eos": True,
                                        "cache_prompt": False})
    timings = answer["timings"]
    print(json.dumps({"seconds": timings["predicted_ms"] / 1000, "tokens": timings["predicted_n"]}))


def llama_cpp(args, model):
    """Seconds for as many tokens."""
    out = subprocess.run([sys.executable, __file__, args.binary, model, "--tokens", str(args.tokens), "--threads",
                          str(args.threads), "--llama-cpp-child"], check=True, capture_output=True, text=True)
    answer = json.loads(out.stdout.splitlines()[-1])
    return answer["seconds"] * args.tokens / answer["tokens"]


def main():
    args = arguments()
    if args.llama_cpp_child:
        return llama_cpp_child(args)
    print(f"{'model':<32}{'atombank':>10}{'llama.cpp':>11}{'ratio':>8}    tokens/s, {args.threads} threads")
    for model in args.models:
        ours, theirs = [], []
        for _ in range(args.rounds):
            ours.append(atombank(args, model))
            theirs.append(llama_cpp(args, model))
        one, more = (min(times) for times in zip(*ours))
        ours, theirs = args.tokens / (more - one), args.tokens / min(theirs)
        print(f"{os.path.basename(model):<32}{ours:>10.1f}{theirs:>11.1f}{ours / theirs:>8.2f}", flush=True)


if __name__ == "__main__":
    main()
