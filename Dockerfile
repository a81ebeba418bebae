# The image of every role. Every file that is installed has one of the hashes in requirements/*.lock.
# Another build of torch, for example one for the CPU, has other hashes. It is installed by version:
# docker compose build --build-arg PIP_EXTRA_INDEX_URL=<its index>
FROM python:3.11-slim AS wheel
WORKDIR /source
COPY requirements/build.lock requirements/
RUN pip install --no-cache-dir --require-hashes -r requirements/build.lock
COPY CHANGELOG.md LICENSE README.md constraints.txt hatch_build.py pyproject.toml ./
COPY contracts/artifacts contracts/artifacts
COPY contracts/release contracts/release
COPY model model
COPY node node
COPY piecework piecework
COPY protocol protocol
RUN pip wheel --no-cache-dir --no-build-isolation --no-deps --wheel-dir /wheels .

FROM python:3.11-slim
ARG PIP_EXTRA_INDEX_URL=""
# Triton compiles its kernels with a C compiler at first use.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
# Volumes take over the owner of the folders that they cover.
RUN useradd --create-home piecework && mkdir /market && chown piecework /market \
    && for folder in worker models cache client index; do \
         install --directory --owner piecework --mode 700 "/home/piecework/$folder"; \
       done
WORKDIR /opt/piecework
COPY constraints.txt ./
COPY requirements requirements
# The libraries first: their layers stay when only our sources change.
RUN pip install --no-cache-dir --require-hashes -r requirements/worker.lock -r requirements/chain.lock \
      -r requirements/postgres.lock --no-deps
RUN if [ -z "$PIP_EXTRA_INDEX_URL" ]; then \
      pip install --no-cache-dir --require-hashes --no-deps -r requirements/torch.lock; \
    else \
      pip install --no-cache-dir --constraint constraints.txt torch; \
    fi
COPY --from=wheel /wheels /wheels
RUN pip install --no-cache-dir --no-deps /wheels/*.whl && pip check
USER piecework
# `docker compose exec worker piecework worker top` finds the home of the worker, and so on.
ENV PIECEWORK_HOME=/home/piecework
CMD ["piecework", "--help"]
