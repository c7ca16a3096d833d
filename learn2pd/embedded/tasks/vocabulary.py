"""Words that the generators of `math` and `json` share.

The words are few, because a laptop trains the model that has to know them.
"""

PEOPLE = {
    "Mia": "She",
    "Leo": "He",
    "Ana": "She",
    "Tom": "He",
    "Zoe": "She",
    "Max": "He",
    "Eva": "She",
    "Sam": "He",
    "Ida": "She",
    "Ben": "He",
}
ITEMS = ["pears", "books", "coins", "cards", "eggs", "pens", "shells", "stamps"]
CITIES = ["Oslo", "Rome", "Paris", "Lima", "Cairo", "Delhi", "Kyoto", "Bern"]
JOBS = ["nurse", "baker", "pilot", "judge", "cook", "singer", "farmer", "teacher"]
HOBBIES = ["chess", "tennis", "art", "music", "golf", "yoga", "poetry", "dance"]
PETS = ["cat", "dog", "bird", "horse", "rabbit"]
PET_NAMES = ["Rex", "Luna", "Milo", "Coco", "Pip"]
TEAMS = ["red", "blue", "green", "gold", "black", "white"]
