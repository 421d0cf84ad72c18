// Where the rows of a time block lie in the buffers that hold one.
#pragma once

#include <vector>

#include "cpu/team.h"
#include "engine/params.h"

namespace rnnext::cpu {

// Group after group of sequences, and those of one in the order of the steps: a thread that takes a group through a whole
// scan has its rows together. One group: all sequences, in the order that the rows have in x and y. Each thread has one of
// these, and says which block it is about.
class BlockRows {
 public:
  // `groups`: ranges of sequences, one after the other, that are all of them. `apart`: whether each has its place for itself,
  // as threads may be in different blocks; else there is nothing between them.
  BlockRows(const Steps& steps, std::vector<Range> groups, bool apart)
      : steps_(steps), groups_(std::move(groups)), apart_(apart), first_(groups_.size() + 1) {}

  void begin_block(int64_t block) {
    block_ = steps_.steps_of(block);
    for (int64_t g = 0; g < groups(); ++g) first_[g + 1] = first_[g] + (apart_ ? most({g, g + 1}) : count(g, block_));
    if (!steps_.offsets || groups() == 1) return;
    of_step_.clear();
    for (int64_t g = 0; g < groups(); ++g) {
      int64_t row = first_[g];
      for (int64_t t = block_.begin; t < block_.end; ++t) {
        of_step_.push_back(row);
        row += alive(g, t).size();
      }
    }
  }

  int64_t groups() const { return static_cast<int64_t>(groups_.size()); }
  Range steps() const { return block_; }
  Range sequences(Range groups) const { return {groups_[groups.begin].begin, groups_[groups.end - 1].end}; }
  Range alive(int64_t group, int64_t t) const { return groups_[group].below(steps_.rows(t)); }

  // The rows of a group, or of all groups if they are not apart.
  Range of(int64_t group) const { return of({group, group + 1}); }
  Range of(Range groups) const {
    const int64_t last = groups.end - 1;
    return {first_[groups.begin], first_[last] + count(last, block_)};
  }

  // The row of sequence n, which a part takes, in step t. The groups are the parts', or there is one.
  int64_t at(int64_t group, int64_t t, int64_t n) const {
    if (groups() == 1) return steps_.first(t) - steps_.first(block_.begin) + n;
    const int64_t step = t - block_.begin, of_group = n - groups_[group].begin;
    if (steps_.offsets) return of_step_[group * block_.size() + step] + of_group;
    return first_[group] + step * groups_[group].size() + of_group;
  }

  // The rows of a group in x and y.
  std::vector<Range> outside(int64_t group) const {
    std::vector<Range> rows;
    for (int64_t t = block_.begin; t < block_.end; ++t) {
      const Range alive = this->alive(group, t);
      const int64_t begin = steps_.first(t) + alive.begin;
      if (!alive.size()) continue;
      if (!rows.empty() && rows.back().end == begin) {
        rows.back().end += alive.size();
      } else {
        rows.push_back({begin, begin + alive.size()});
      }
    }
    return rows;
  }

  // Rows of some groups in the block that has most.
  int64_t most(Range groups) const {
    int64_t rows = 0;
    for (int64_t g = groups.begin; g < groups.end; ++g) rows += count(g, steps_.steps_of(0));
    return rows;
  }

 private:
  int64_t count(int64_t group, Range steps) const {
    if (!steps_.offsets) return steps.size() * groups_[group].size();
    int64_t rows = 0;
    for (int64_t t = steps.begin; t < steps.end; ++t) rows += alive(group, t).size();
    return rows;
  }

  const Steps& steps_;
  const std::vector<Range> groups_;
  const bool apart_;
  Range block_{0, 0};
  std::vector<int64_t> first_;    // [groups + 1]
  std::vector<int64_t> of_step_;  // [groups][steps of the block]; of packed sequences alone
};

// Calls work(team, group): for the only group, by the whole team; or for this thread's of several, each by it alone.
template <class Work>
void each_group(const Team& team, const BlockRows& rows, Work work) {
  if (rows.groups() == 1) return work(team, 0);
  team.each(rows.groups(), [&](int64_t group) { work(Team{0, 1, nullptr}, group); });
}

}  // namespace rnnext::cpu
